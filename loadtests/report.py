"""A benchmark's numbers as people read them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import median

from rich.console import Console
from rich.table import Table

from loadtests.acceptance import Comparison, Estimate
from loadtests.arms import SPECULATIVE, VLLM_EAGLE3
from loadtests.rounds import PARTS, Rounds
from loadtests.stats import Ratio
from loadtests.summary import Agreement, ArmSummary, Spread, Summary

NONE = "-"


# Columns of a report that goes to a file or a pipe.
WIDTH = 100


def console() -> Console:
    """The console that reports are printed on."""
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def print_report(console: Console, summary: Summary) -> None:
    """Print all tables."""
    console.print(_speed(summary.arms))
    if summary.ratios:
        console.print(_ratios(summary))
    for arm in summary.arms:
        if arm.name in (SPECULATIVE, VLLM_EAGLE3) and arm.rounds is not None:
            console.print(_acceptance(arm.name, arm.rounds))
            if arm.name == SPECULATIVE and arm.rounds.drafted_rounds:
                console.print(_sources(arm.rounds))
    if summary.acceptance is not None:
        if summary.acceptance.positions:
            console.print(_compared(summary.acceptance))
        console.print(verdict(summary.acceptance))
    if any(arm.rounds and arm.rounds.parts_ms for arm in summary.arms):
        console.print(_time(summary.arms))
    for arm in summary.arms:
        if arm.rounds is not None and arm.rounds.failovers:
            moved = f"{arm.name}: {arm.rounds.failovers} failovers; its numbers are disturbed."
            console.print(moved, style="red")
    for agreement in summary.agreements:
        console.print(describe(agreement))
    for error in dict.fromkeys(summary.errors):
        console.print(f"Failed ({summary.errors.count(error)}): {error}", style="red", markup=False)


def _speed(arms: Sequence[ArmSummary]) -> Table:
    table = _table("Speed", "arm", "requests", "tok/s", "TTFT ms", "chunk gap ms", "per token ms")
    table.caption = "p50 / p95. tok/s counts the time to the first token; per token does not."
    for arm in arms:
        failed = f" ({arm.failed} failed)" if arm.failed else ""
        table.add_row(
            arm.name,
            f"{arm.requests}{failed}",
            _number(arm.tokens_per_second, 1),
            *(_spread_ms(s) for s in (arm.first_token, arm.chunk_gap, arm.time_per_token)),
        )
    return table


def _ratios(summary: Summary) -> Table:
    table = _table("Ratios of tokens per second", "arms", "median", "95 % interval", "repeats")
    table.caption = "Paired by block of prompts; repeats: the lowest and highest median of one."
    for name, ratio in summary.ratios.items():
        spread = f"{min(ratio.repeats):.3f} .. {max(ratio.repeats):.3f} ({len(ratio.repeats)})"
        table.add_row(name, f"{ratio.median:.3f}", _interval(ratio), spread)
    return table


def _interval(ratio: Ratio) -> str:
    if ratio.low is None or ratio.high is None:
        return NONE
    return f"{ratio.low:.3f} .. {ratio.high:.3f}"


def _acceptance(arm: str, rounds: Rounds) -> Table:
    title = f"Acceptance by position in the draft, {arm}"
    table = _table(title, "position", "proposed", "accepted", "share")
    counts = zip(rounds.proposed_at, rounds.accepted_at, rounds.shares, strict=True)
    for position, (proposed, accepted, share) in enumerate(counts, start=1):
        table.add_row(str(position), str(proposed), str(accepted), f"{share:.3f}")
    table.caption = (
        "Acceptance length (tokens per verification, bonus included): "
        f"{rounds.acceptance_length:.3f} over all rounds, "
        f"{_number(rounds.drafted_acceptance_length, 3)} over rounds with a draft, "
        f"which {rounds.drafted_share:.1%} of {rounds.rounds} had."
    )
    return table


def _sources(rounds: Rounds) -> Table:
    table = _table("Drafts by source", "source", "rounds", "proposed", "accepted", "length")
    table.add_column("accepted at position 1, 2, ...")
    for name, drafts in rounds.by_source.items():
        table.add_row(
            name,
            f"{drafts.rounds} ({drafts.rounds / rounds.rounds:.1%})",
            str(sum(drafts.proposed_at)),
            str(sum(drafts.accepted_at)),
            _number(drafts.acceptance_length, 3),
            " ".join(f"{share:.3f}".lstrip("0") for share in drafts.per_position),
        )
    table.caption = "length: acceptance length over rounds with such a draft, bonus included."
    return table


def _compared(comparison: Comparison) -> Table:
    table = _table(
        "Acceptance of the same drafter in both engines",
        "position",
        *(SPECULATIVE, VLLM_EAGLE3, "difference", "standard error", "in errors"),
    )
    for position, estimate in enumerate(comparison.positions, start=1):
        table.add_row(str(position), *_row(estimate))
    if comparison.length is not None:
        table.add_section()
        table.add_row("length", *_row(comparison.length))
    table.caption = (
        f"Paired bootstrap over {comparison.prompts} prompts. "
        "length: 1 and the sum of the shares, bonus included."
    )
    return table


def _row(estimate: Estimate) -> list[str]:
    return [
        f"{estimate.ours:.4f}",
        f"{estimate.theirs:.4f}",
        f"{estimate.difference:+.4f}",
        f"{estimate.error:.4f}",
        f"{estimate.errors_apart:.2f}",
    ]


def verdict(comparison: Comparison) -> str:
    """One sentence on whether both engines accept alike."""
    if comparison.equal is None:
        return f"Acceptance cannot be compared with vLLM's. {comparison.obstacle}"
    largest = max(estimate.errors_apart for estimate in comparison.positions)
    said = "equals vLLM's within" if comparison.equal else "differs from vLLM's by more than"
    return (
        f"Acceptance by position {said} sampling error: up to {largest:.2f} standard errors apart, "
        f"{comparison.allowed:.2f} allowed."
    )


def _time(arms: Sequence[ArmSummary]) -> Table:
    told = [(arm.name, arm.rounds) for arm in arms if arm.rounds and arm.rounds.parts_ms]
    table = _table("Where a round's time goes, ms (share)", "part", *(name for name, _ in told))
    table.caption = "After the first token, by the verifier's clock; the last row by the client's."
    totals = [sum(rounds.parts_ms.values()) for _, rounds in told]
    for part, label in PARTS.items():
        values = [rounds.parts_ms[part] for _, rounds in told]
        shares = (v / t if t else 0.0 for v, t in zip(values, totals, strict=True))
        table.add_row(label, *(f"{v:.2f} ({s:4.0%})" for v, s in zip(values, shares, strict=True)))
    table.add_section()
    table.add_row("sum", *(f"{total:.2f} (100%)" for total in totals))
    table.add_row("seen by the client", *(f"{r.client_ms:.2f}       " for _, r in told))
    return table


def describe(agreement: Agreement) -> str:
    """One sentence on whether two arms wrote the same."""
    both = f"{agreement.first} and {agreement.second}"
    places = agreement.differing_at
    if not places:
        return f"{both}: all {agreement.compared} outputs are equal, token by token."
    return (
        f"{both}: {len(places)} of {agreement.compared} outputs differ, first at token "
        f"{min(places)} (median of their first differences: {median(places):g})."
    )


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _spread_ms(spread: Spread) -> str:
    if spread.p50 is None or spread.p95 is None:
        return NONE
    return f"{spread.p50 * 1e3:.1f} / {spread.p95 * 1e3:.1f}"
