"""The draft vocabulary, as the tensors of a checkpoint say it.

``d2t`` is int64 ``[draft]``: the target id of draft token ``j`` is ``j + d2t[j]``. ``t2d`` is bool
``[vocab]``: the target ids that can be drafted.
"""

import torch
from torch import Tensor

from drafter_svc.config import CheckpointError, DrafterConfig, require


def take_vocabulary(tensors: dict[str, Tensor], config: DrafterConfig) -> Tensor:
    """Take ``d2t`` and ``t2d`` out of ``tensors`` and check them; returns ``d2t``.

    ``t2d`` says nothing new and may be left out, both may where all target ids can be drafted.
    """
    draft, vocab = config.draft_vocab_size, config.vocab_size
    if "d2t" not in tensors:
        require(
            draft == vocab,
            f"there is no tensor d2t, so that draft tokens would stand for the first {draft} of "
            f"{vocab} target ids: add the checkpoint's d2t",
        )
        tensors["d2t"] = torch.zeros(draft, dtype=torch.int64)
    d2t = _checked(tensors.pop("d2t"), "d2t", (draft,), torch.int64)
    target_ids = torch.arange(draft) + d2t
    check_ids(target_ids, config)
    if "t2d" in tensors:
        t2d = _checked(tensors.pop("t2d"), "t2d", (vocab,), torch.bool)
        if not torch.equal(t2d.nonzero().flatten(), target_ids):
            raise CheckpointError("d2t and t2d name different draft vocabularies")
    else:
        require(
            draft == vocab or bool(d2t.any()),
            "d2t is all zero and there is no t2d, as if it had never been filled in: add t2d if "
            "draft tokens do stand for the first target ids",
        )
    return d2t


def vocabulary_tensors(target_ids: Tensor, config: DrafterConfig) -> dict[str, Tensor]:
    """``d2t`` and ``t2d`` of int64 ``target_ids`` ``[draft]``."""
    target_ids = target_ids.to("cpu", torch.int64)
    check_ids(target_ids, config)
    t2d = torch.zeros(config.vocab_size, dtype=torch.bool)
    t2d[target_ids] = True
    return {"d2t": target_ids - torch.arange(len(target_ids)), "t2d": t2d}


def check_ids(target_ids: Tensor, config: DrafterConfig) -> None:
    """Refuse target ids that are not strictly ascending within the vocabulary."""
    if len(target_ids) != config.draft_vocab_size:
        raise CheckpointError(
            f"the draft vocabulary has {len(target_ids)} ids, expected {config.draft_vocab_size}"
        )
    low, high = int(target_ids.min()), int(target_ids.max())
    if low < 0 or high >= config.vocab_size:
        worst = low if low < 0 else high
        raise CheckpointError(f"d2t maps to id {worst}, outside [0, {config.vocab_size})")
    if not bool((target_ids.diff() > 0).all()):
        raise CheckpointError("d2t does not map to strictly ascending target ids")


def _checked(tensor: Tensor, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}")
    if tensor.dtype != dtype:
        raise CheckpointError(f"{name} is {tensor.dtype}, expected {dtype}")
    return tensor
