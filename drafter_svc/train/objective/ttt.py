"""Training-time test: unroll the chain that serving runs, teacher-forced, from every column.

Column i at chain step k reads token x_{i+1+k} at RoPE position i + k, with the fused feature of
position i at step 0 and the recycled state of its own step k - 1 after that. It is taught the
target's distribution at position i + 1 + k, so its label is x_{i+2+k}.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from drafter_svc.model.eagle import EagleDrafter
from drafter_svc.train.data.documents import Batch
from drafter_svc.train.objective.ttt_attention import ChainAttention


@dataclass(frozen=True, slots=True)
class ChainStep:
    """What one chain step computes: ``columns`` int64 ``[S]`` of a batch, ascending.

    ``live`` (bool ``[S]``) marks those with something to learn; ``teacher`` int64 ``[S]`` is the
    row of the target's distribution (only meaningful where live).
    """

    columns: Tensor
    live: Tensor
    teacher: Tensor


def plan_chain(
    batch: Batch, steps: int, *, stride: int = 1, phase: int = 0, prompts: bool = False
) -> list[ChainStep]:
    """Columns of ``steps`` chain steps.

    Chains start where serving starts them (at or after the last prompt token) and live as long
    as their inputs and label lie in one answer. Step 0 covers all N columns and learns, with
    ``prompts``, from every position of a prompt too: the target's soft labels exist there as
    well. Later steps run for every ``stride``-th position where a chain lives on.
    """
    total, device = len(batch.ids), batch.ids.device
    lengths = torch.tensor(batch.lengths, device=device)
    document = torch.arange(len(lengths), device=device).repeat_interleave(lengths)
    current = torch.arange(total, device=device)

    def written(ahead: int, anything: bool = False) -> Tensor:
        """Whether the token ``ahead`` of a column is the target's own, in the same document."""
        at = (current + ahead).clamp(max=total - 1)
        inside = (current + ahead < total) & (document[at] == document[current])
        return inside if anything else inside & batch.answer[at]

    live = written(1, prompts) & written(2, prompts)
    plan = [ChainStep(current, live, (current + 1).clamp(max=total - 1))]
    for k in range(1, steps):
        if k == 1:
            spaced = (batch.positions + phase) % stride == 0
            current = (written(1) & written(2) & written(3) & spaced).nonzero().flatten()
            live = torch.ones_like(current, dtype=torch.bool)
        else:
            live = live & written(2 + k)
        plan.append(ChainStep(current, live, (current + 1 + k).clamp(max=total - 1)))
    return plan


def unroll(
    drafter: EagleDrafter,
    embedding: nn.Embedding,
    batch: Batch,
    features: Tensor,
    plan: Sequence[ChainStep],
) -> Iterator[Tensor]:
    """The last layer's output at each step of ``plan``, ``[S, H]``.

    ``embedding`` is the target's, which a drafter with embeddings of its own does not read.
    ``features`` is ``[N, captured * H]`` of ``batch.ids``. Gradients reach every step through
    the recycled state.
    """
    embedding = drafter.embeddings(embedding)
    columns = plan[min(1, len(plan) - 1)].columns
    config = drafter.config
    attend = ChainAttention(batch.lengths, columns, config.sliding_window, config.num_hidden_layers)
    state = drafter.fuse(features)
    for k, step in enumerate(plan):
        if k == 1:
            state = state[step.columns]
        tokens = batch.ids[(step.columns + 1 + k).clamp(max=len(batch.ids) - 1)]
        positions = batch.positions[step.columns] + k
        hidden = drafter.layer(embedding(tokens), state, positions, attend)
        yield hidden
        state = drafter.recycle(hidden)
