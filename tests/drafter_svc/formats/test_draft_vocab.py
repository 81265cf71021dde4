"""Whatever says the draft vocabulary gives the same drafts, or is refused."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drafter_svc.formats.checkpoint import load_checkpoint
from drafter_svc.formats.draft_vocab import take_vocabulary, vocabulary_tensors
from drafter_svc.model.config import CheckpointError
from tests.support.foreign_checkpoints import GIVEN, check_same, put, refusal, written
from tests.support.tiny_drafter import tiny_config

VOCAB = 64


@st.composite
def vocabularies(draw: st.DrawFn) -> list[int]:
    """Target ids of draft tokens, in any order."""
    return draw(st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=VOCAB, unique=True))


@settings(max_examples=60, deadline=None)
@given(
    vocabularies(),
    st.sampled_from([torch.int64, torch.int32]),
    st.sampled_from([torch.bool, torch.uint8, None]),
)
def test_rows_of_the_head_stay_with_their_tokens(
    ids: list[int], integers: torch.dtype, marks: torch.dtype | None
) -> None:
    config = tiny_config(draft_vocab_size=len(ids), vocab_size=VOCAB)
    target_ids = torch.tensor(ids)
    # Each row says which token it is for.
    tensors: dict[str, Tensor] = {
        "lm_head.weight": target_ids[:, None].float().expand(-1, 16),
        "d2t": (target_ids - torch.arange(len(ids))).to(integers),
    }
    if marks is not None:
        tensors["t2d"] = torch.zeros(VOCAB, dtype=marks).index_fill(0, target_ids, 1)
    first = sorted(ids) == list(range(len(ids)))
    if marks is None and len(ids) < VOCAB and not tensors["d2t"].any():
        with pytest.raises(CheckpointError, match="never been filled in"):
            take_vocabulary(tensors, config)
        assert first
        return
    d2t, _ = take_vocabulary(tensors, config)
    read = torch.arange(len(ids)) + d2t
    assert d2t.dtype == torch.int64
    assert read.tolist() == sorted(ids)
    assert tensors["lm_head.weight"][:, 0].tolist() == sorted(ids)
    assert tensors.keys() == {"lm_head.weight"}


@settings(max_examples=40, deadline=None)
@given(vocabularies())
def test_t2d_alone_is_enough(ids: list[int]) -> None:
    config = tiny_config(draft_vocab_size=len(ids), vocab_size=VOCAB)
    whole = vocabulary_tensors(torch.tensor(sorted(ids)), config)
    d2t, notes = take_vocabulary({"t2d": whole["t2d"]}, config)
    assert torch.equal(d2t, whole["d2t"])
    assert notes == ()


def test_buffers_that_were_never_needed_are_blank(tmp_path: Path) -> None:
    """SafeAILab's trainer creates both and fills neither in where all tokens are draft tokens."""
    tensors, values = written(tmp_path, draft_vocab_size=VOCAB)
    tensors["t2d"] = torch.zeros(VOCAB, dtype=torch.bool)
    folder = put(tmp_path / "theirs", tensors, values)
    check_same(folder, tmp_path / "original")
    tensors["t2d"][5] = True
    assert "different draft vocabularies" in refusal(put(folder, tensors, values))


def test_blank_buffers_of_chosen_tokens_are_refused(tmp_path: Path) -> None:
    tensors, values = written(tmp_path)
    blank = {"d2t": torch.zeros(40, dtype=torch.int64), "t2d": torch.zeros(VOCAB)}
    blank["t2d"] = blank["t2d"].bool()
    folder = put(tmp_path / "theirs", tensors | blank, values)
    assert "never been filled in" in refusal(folder)


def test_offsets_that_look_like_ids_are_said(tmp_path: Path) -> None:
    tensors, values = written(tmp_path, draft_vocab_size=30)
    del tensors["t2d"]
    tensors["d2t"] = torch.arange(30)
    folder = put(tmp_path / "theirs", tensors, values)
    loaded = load_checkpoint(folder, dtype=torch.float32, given=GIVEN)
    assert loaded.target_ids.tolist() == [2 * index for index in range(30)]
    (note,) = loaded.notes
    assert "meant ids and not offsets" in note


def test_an_order_of_its_own_needs_a_head_of_its_own(tmp_path: Path) -> None:
    tensors, values = written(tmp_path, draft_vocab_size=VOCAB)
    order = torch.arange(VOCAB).flip(0)
    del tensors["t2d"], tensors["lm_head.weight"]
    tensors["d2t"] = order - torch.arange(VOCAB)
    assert "another order" in refusal(put(tmp_path / "theirs", tensors, values))
