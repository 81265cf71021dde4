"""Whether a stack is exact: what is counted, what is a fault, and the table of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from loadtests.common.compare import Divergence, allowed_near_ties
from loadtests.common.draft_stats import RoundStats
from loadtests.common.result import RequestFailed, Result
from loadtests.exactness.kill_drafter import Kill
from loadtests.exactness.modes import Mode, Output

COLUMNS = (
    "mode",
    "outputs",
    "tokens",
    "equal",
    "near-ties",
    "wrong",
    "drafted",
    "longest",
    "length",
)


@dataclass(slots=True)
class Verdict:
    """Passed as long as there are no `faults`, each one sentence."""

    rows: list[tuple[str, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def take(self, outputs: Sequence[Output], dtype: str, limit: float) -> None:
        """Count all outputs, mode by mode; those that differ have been scored by `limit`."""
        for mode in dict.fromkeys(output.mode.name for output in outputs):
            self._take_mode([output for output in outputs if output.mode.name == mode])
        found = {divergence for output in outputs for divergence in output.divergences}
        ties = sorted((d for d in found if d.near_tie), key=lambda d: (d.prompt, d.position))
        wrong = sorted((d for d in found if not d.near_tie), key=lambda d: (d.prompt, d.position))
        self.notes += [f"Near-tie: {_describe(tie)}." for tie in ties]
        self.faults += [f"Wrong token: {_describe(divergence)}." for divergence in wrong]
        tokens = sum(len(o.answer.tokens) for o in outputs if isinstance(o.answer, Result))
        self.notes.append(f"{len(ties)} near-ties (gap under {limit:.2g}) in {tokens} tokens.")
        allowed = allowed_near_ties(tokens)
        # Logits of the smaller types tie often, and exactly.
        if dtype == "float32" and len(ties) > allowed:
            self.faults.append(f"{len(ties)} near-ties are more than the {allowed} allowed.")

    def _take_mode(self, outputs: Sequence[Output]) -> None:
        mode = outputs[0].mode
        results = [o.answer for o in outputs if isinstance(o.answer, Result)]
        found = [divergence for output in outputs for divergence in output.divergences]
        rounds = RoundStats.of(results)
        self.rows.append(
            (
                mode.name,
                str(len(outputs)),
                str(sum(len(result.tokens) for result in results)),
                str(len(results) - sum(output.differs for output in outputs)),
                str(sum(divergence.near_tie for divergence in found)),
                str(sum(not divergence.near_tie for divergence in found)),
                f"{rounds.drafted_share:.0%}" if rounds else "-",
                str(len(rounds.proposed_at)) if rounds else "-",
                f"{rounds.acceptance_length:.2f}" if rounds else "-",
            )
        )
        self.faults += [
            f"{mode.name}: prompt {output.case.ask.prompt.name} failed: {output.answer}"
            for output in outputs
            if isinstance(output.answer, RequestFailed)
        ]
        if rounds and rounds.failovers:
            self.notes.append(f"{mode.name}: {rounds.failovers} failovers.")
        self._check_drafts(mode, rounds)

    def _check_drafts(self, mode: Mode, rounds: RoundStats | None) -> None:
        drafted = rounds.drafted_rounds if rounds else 0
        if mode.speculation is not False and not drafted:
            self.faults.append(f"{mode.name}: nothing was drafted, so nothing was shown.")
        if mode.speculation is False and drafted:
            self.faults.append(f"{mode.name}: {drafted} rounds had a draft.")

    def take_kill(self, kill: Kill, result: Result) -> None:
        """Judge by the chunks whether speculation ended with the drafter and came back."""
        before, again = kill.drafted_before(result), kill.drafted_again(result)
        if kill.at is None:
            self.faults.append("The output ended before the drafter could be killed.")
        elif not before:
            self.faults.append("No draft was accepted before the drafter was killed.")
        elif not again:
            self.faults.append(
                "No draft was accepted after the drafter was killed; "
                "if it was restarted at all, raise --kill-max-tokens."
            )
        else:
            self.notes.append(
                f"Drafter killed {kill.at:.1f} s into the request ({before} chunks of more than "
                f"one token before); the next such chunk came {again[0]:.1f} s later, "
                f"{len(again)} in all until {result.seconds:.1f} s."
            )

    def print(self, console: Console) -> None:
        """Print the table, what is worth knowing, and the verdict."""
        table = Table(
            title="Greedy text against transformers in the same dtype",
            title_justify="left",
            caption_justify="left",
        )
        for column in COLUMNS:
            table.add_column(column, justify="left" if column == "mode" else "right")
        for row in self.rows:
            table.add_row(*row)
        table.caption = (
            "drafted: share of rounds with a draft; longest: longest draft; "
            "length: acceptance length, bonus included."
        )
        console.print(table)
        for note in self.notes:
            console.print(note, markup=False, highlight=False)
        for fault in self.faults:
            console.print(f"FAULT  {fault}", style="red", markup=False, highlight=False)
        console.print("Not passed." if self.faults else "Passed.")


def _describe(divergence: Divergence) -> str:
    return (
        f"prompt {divergence.prompt}, token {divergence.position}, "
        f"{divergence.gap:.2e} below the best"
    )
