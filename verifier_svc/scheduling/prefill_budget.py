"""How many prompt rows run beside rows that verify. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from verifier_svc.cost_model.latency import StepLatency

# Prompt rows may make a step longer by this share of its time without them. Decoding then slows
# by less than 2x at p95: at 0.7, noise and costs that grow along a prompt made it 2.2x on a CPU.
_STRETCH = 0.5
# A short prompt may make them longer by more: by so much over its own time, in steps without it,
# and at most by this. It is over before decoding notices much, and waiting is all that it does.
_QUICK, _MOST = 8.0, 2.0
# Prompt rows of any step that has them, whatever they cost: a prompt always gets on. Fewer would
# pay more for the step than for themselves; 16, with 4,000 keys each, made it 2.1x at p95 on a CPU.
_LEAST_ROWS = 8
# Steps with prompt rows before one without: what a step costs without must stay known.
_STREAK = 8


class PrefillBudget:
    """Bounds the prompt rows of a step by what they cost those who decode meanwhile."""

    def __init__(self, cost: StepLatency, token_budget: int) -> None:
        """Take the rows that a step may be filled up to with prompt rows."""
        self._cost = cost
        self._budget = token_budget
        self._streak = 0

    def prompt_rows(self, rows: int, decoding: int, prompts: Sequence[int]) -> int:
        """Prompt rows of the next step, beside `rows` rows of `decoding` sequences.

        `prompts` are the rows that each waiting prompt had to run at first. Where more sequences
        wait for their prompts than decode, a longer step is worth it to more of them than it
        delays.
        """
        if not prompts:
            self._streak = 0
            return 0
        if not decoding:
            return self._budget
        self._streak += 1
        if self._streak > _STREAK:
            self._streak = 0
            return 0
        steps = sum(prompts) / len(prompts) / max(self._cost.prompt_rows(rows, 1.0), 1)
        share = min(max(_QUICK / steps, _STRETCH), _MOST) * max(1.0, len(prompts) / decoding)
        affordable = min(self._cost.prompt_rows(rows, share), self._budget - rows)
        return max(affordable, min(_LEAST_ROWS, self._budget))
