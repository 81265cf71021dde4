"""The draft vocabulary, as the tensors of a checkpoint say it.

``d2t`` is int64 ``[draft]``: the target id of draft token ``j`` is ``j + d2t[j]``. ``t2d`` is bool
``[vocab]``: the target ids that can be drafted. Each says all that the other does, as long as
target ids ascend, which some trainers' do not: those are sorted, with the head's rows.
"""

import torch
from torch import Tensor

from drafter_svc.model.config import CheckpointError, DrafterConfig, require

_HEAD = "lm_head.weight"


def take_vocabulary(
    tensors: dict[str, Tensor], config: DrafterConfig
) -> tuple[Tensor, tuple[str, ...]]:
    """Take ``d2t`` and ``t2d`` out of ``tensors`` and check them.

    The rows of the head in ``tensors`` come to the order of ascending target ids. Returns ``d2t``
    and sentences on what looks wrong but may be right.
    """
    draft, vocab = config.draft_vocab_size, config.vocab_size
    d2t = _integers(tensors.pop("d2t", None), "d2t", draft)
    t2d = _integers(tensors.pop("t2d", None), "t2d", vocab)
    require(t2d is None or not bool((t2d.clamp(0, 1) != t2d).any()), "t2d must hold 0 and 1 only")
    if d2t is None and t2d is None:
        require(
            draft == vocab,
            f"there is no tensor d2t, so that draft tokens would stand for the first {draft} of "
            f"{vocab} target ids: add the checkpoint's d2t",
        )
        return torch.zeros(draft, dtype=torch.int64), ()
    if d2t is not None and not bool(d2t.any()) and (t2d is None or not bool(t2d.any())):
        # As SafeAILab's trainer creates both; where all tokens are draft tokens they stay so.
        require(
            draft == vocab,
            "d2t is all zero and t2d marks nothing, as if they had never been filled in: add t2d "
            "if draft tokens do stand for the first target ids",
        )
        return torch.zeros(draft, dtype=torch.int64), ()
    if d2t is None:
        assert t2d is not None
        marked = t2d.nonzero().flatten()
        require(
            len(marked) == draft,
            f"there is no d2t, and t2d marks {len(marked)} target ids, expected {draft}",
        )
        return marked - torch.arange(draft), ()
    target_ids = _sorted(tensors, torch.arange(draft) + d2t, config)
    if t2d is not None and not torch.equal(t2d.nonzero().flatten(), target_ids):
        raise CheckpointError("d2t and t2d name different draft vocabularies")
    return target_ids - torch.arange(draft), _doubts(d2t, vocab)


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


def _sorted(tensors: dict[str, Tensor], target_ids: Tensor, config: DrafterConfig) -> Tensor:
    """Target ids in ascending order; the head's rows follow them."""
    ascending, order = target_ids.sort()
    twice = ascending[1:][ascending.diff() == 0].tolist()
    require(not twice, f"d2t maps two draft tokens to target id {twice[0] if twice else ''}")
    if not torch.equal(ascending, target_ids):
        head = tensors.get(_HEAD)
        require(
            head is not None,
            "d2t gives draft tokens another order than the target's, whose head they borrow",
        )
        assert head is not None
        if len(head) == len(order):  # or else its shape is refused
            tensors[_HEAD] = head[order]
    check_ids(ascending, config)
    return ascending


def _doubts(d2t: Tensor, vocab: int) -> tuple[str, ...]:
    draft = len(d2t)
    if draft < vocab and draft > 1 and torch.equal(d2t, torch.arange(draft)):
        sentence = (
            "d2t is 0, 1, 2, ..., so that draft token j stands for target id 2j: if its writer "
            "meant ids and not offsets, d2t must be all zero and t2d mark the first ids"
        )
        return (sentence,)
    return ()


def _integers(tensor: Tensor | None, name: str, length: int) -> Tensor | None:
    """A vocabulary tensor as int64 ``[length]``, from whatever integers it was saved in."""
    if tensor is None:
        return None
    if list(tensor.shape) != [length]:
        raise CheckpointError(f"{name} has shape {list(tensor.shape)}, expected {[length]}")
    if tensor.is_floating_point() or tensor.is_complex():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(f"{name} is {kind}, which may not hold ids exactly: save integers")
    return tensor.to(torch.int64)
