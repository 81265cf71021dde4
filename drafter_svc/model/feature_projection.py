"""The projection of features as it is served to verifiers, which may take it before they send."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from drafter_svc.model.eagle import EagleDrafter
from speckernels.tensor_codec import pack
from specwire.limits import MAX_SHORT_BYTES
from specwire.v1 import drafter_pb2 as pb

# Room for the rest of a message.
_ROWS_BYTES = MAX_SHORT_BYTES - 1024


def feature_norms(module: EagleDrafter) -> Tensor | None:
    """The norms' weights ``[parts, width / parts]`` of equal parts of a row; None where none are.

    There is one per captured state, or one over all of them.
    """
    if module.config.norm_before_fc:
        return module.input_norm.weight[None]
    norms = tuple(module.fc_norm.parameters())
    return torch.stack(norms) if norms else None


@dataclass(frozen=True, slots=True)
class ProjectionWeights:
    """``fc`` ``[H, captured * H_target]`` and `feature_norms`, of one dtype and device."""

    fc: Tensor
    norms: Tensor | None
    eps: float

    @classmethod
    def of(cls, module: EagleDrafter) -> Self | None:
        """Those of a drafter; None where projected rows would not be narrower than captured ones.

        An MTP head has no projection, and that of a single state makes nothing smaller.
        """
        if module.config.mtp_head or module.fc.out_features >= module.fc.in_features:
            return None
        weight = module.fc.weight.detach()
        # On a CPU it is a part of the mapped file, and would keep all of it in memory.
        weight = weight.clone() if weight.is_cpu else weight
        return cls(weight, feature_norms(module), module.config.rms_norm_eps)

    @property
    def width(self) -> int:
        """Elements of a projected row."""
        return len(self.fc)

    def messages(self) -> Iterator[pb.ProjectionResponse]:
        """What a Projection call answers."""
        norms = [] if self.norms is None else [self.norms.view(1, -1)]
        parts = 0 if self.norms is None else len(self.norms)
        yield pb.ProjectionResponse(form=pb.ProjectionForm(norms=parts, eps=self.eps))
        digest = hashlib.sha256()
        most = max(1, _ROWS_BYTES // (self.fc.shape[1] * self.fc.itemsize))
        for weight in (*norms, self.fc):
            for rows in torch.split(weight, most):
                packed = pack(rows)
                digest.update(packed.data)
                yield pb.ProjectionResponse(rows=packed)
        yield pb.ProjectionResponse(digest=digest.digest())
