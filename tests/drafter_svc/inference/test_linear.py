import pytest
import torch
from torch.nn import functional

from drafter_svc.inference.linear import pack_linear


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [1, 7, 200])
def test_packed_product_equals_the_plain_one(dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(96, 40, dtype=dtype), torch.randn(rows, 40, dtype=dtype)
    expected = functional.linear(inputs.double(), weight.double())
    with torch.inference_mode():
        actual = pack_linear(weight)(inputs)
    assert actual.dtype == dtype
    tolerance = 0.06 if dtype == torch.bfloat16 else 1e-4
    assert torch.allclose(actual.double(), expected, rtol=0.01, atol=tolerance)
