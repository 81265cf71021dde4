"""A benchmark's numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from rich.console import Console
from rich.table import Table

from loadtests.bench.acceptance import Comparison, Estimate
from loadtests.bench.summary import Agreement, ArmSummary, Level, Summary
from loadtests.common.draft_stats import PARTS
from loadtests.common.stats import Ratio
from loadtests.common.tables import number, spread_ms, table, with_interval
from loadtests.peers.arms import ARMS, PLAIN, SINGLE, SPECULATIVE, VLLM_EAGLE3


def print_report(console: Console, summary: Summary) -> None:
    """Print all tables, level by level, and what went wrong."""
    for level in summary.levels:
        console.rule(f"{level.concurrency} at once, {drawn(level.temperature)}", align="left")
        _print_level(console, level)
    single = {arm.name for level in summary.levels for arm in level.arms} & set(SINGLE)
    if single and len({level.concurrency for level in summary.levels}) > 1:
        for name in (name for name in SINGLE if name in single):
            console.print(f"{name}: one request at a time, so it took part at 1 alone.")
    for error in dict.fromkeys(summary.errors):
        console.print(f"Failed ({summary.errors.count(error)}): {error}", style="red", markup=False)


def drawn(temperature: float) -> str:
    """How outputs are drawn, in a word."""
    return f"T = {temperature:g}" if temperature else "greedy"


def _print_level(console: Console, level: Level) -> None:
    console.print(_speed(level.arms))
    paired = "Median of pairs by block of prompts (95 % interval)."
    if level.speeds:
        console.print(ratio_table("Tokens per second, row by column", level.speeds, paired))
    for line in ratio_lines(level):
        console.print(line)
    if level.round_times:
        console.print(ratio_table("Time per round, row by column", level.round_times, paired))
    if any(arm.rounds and arm.rounds.by_source for arm in level.arms):
        console.print(_drafts(level.arms))
    for name, comparison in level.acceptance.items():
        if comparison.positions:
            console.print(_compared(name, comparison))
        console.print(f"{name}: {verdict(comparison)}")
    if any(arm.rounds and arm.rounds.parts_ms for arm in level.arms):
        console.print(_time(level.arms))
    for arm in level.arms:
        if arm.rounds is not None and arm.rounds.failovers:
            moved = f"{arm.name}: {arm.rounds.failovers} failovers; its numbers are disturbed."
            console.print(moved, style="red")
    for agreement in level.agreements:
        console.print(describe(agreement))


def ratio_lines(level: Level) -> list[str]:
    """The ratios of tokens per second that our own arms are judged by, a sentence each."""
    lines = []
    how = drawn(level.temperature)
    if ratio := level.speeds.get(SPECULATIVE, {}).get(PLAIN):
        lines.append(f"speculation on against off, {how}: {with_interval(ratio)}")
    for name, ratio in level.against_greedy.items():
        lines.append(f"{name} at {how} against {name} greedy: {with_interval(ratio)}")
    return lines


def _speed(arms: Sequence[ArmSummary]) -> Table:
    columns = ("requests", "tok/s", "TTFT ms", "chunk gap ms", "per token ms", "length", "drafted")
    made = table("Speed", "arm", *columns)
    made.caption = (
        "p50 / p95. tok/s: while all clients were busy, the time to the first token included; "
        "per token is without it.\nlength: tokens per verification, bonus included; "
        "drafted: share of rounds with a draft."
    )
    for arm in arms:
        failed = f" ({arm.failed} failed)" if arm.failed else ""
        made.add_row(
            arm.name,
            f"{arm.requests}{failed}",
            number(arm.tokens_per_second, 1),
            *(spread_ms(s) for s in (arm.first_token, arm.chunk_gap, arm.time_per_token)),
            number(arm.rounds.acceptance_length if arm.rounds else None, 3),
            f"{arm.rounds.drafted_share:.1%}" if arm.rounds else "-",
        )
    return made


def ratio_table(title: str, ratios: Mapping[str, Mapping[str, Ratio]], caption: str) -> Table:
    """A table of ratios by arm and the arm it is set against."""
    bases = [base for base in ARMS if any(base in row for row in ratios.values())]
    made = table(title, "", *bases, caption=caption)
    for name, row in ratios.items():
        made.add_row(name, *(with_interval(row.get(base)) for base in bases))
    return made


def _drafts(arms: Sequence[ArmSummary]) -> Table:
    columns = ("rounds", "proposed", "accepted", "length", "accepted at position 1, 2, ...")
    made = table("Drafts by source", "arm", "source", *columns)
    for arm in arms:
        for source, drafts in arm.rounds.by_source.items() if arm.rounds else ():
            assert arm.rounds is not None
            made.add_row(
                arm.name,
                source,
                f"{drafts.rounds} ({drafts.rounds / arm.rounds.rounds:.1%})",
                str(sum(drafts.proposed_at)),
                str(sum(drafts.accepted_at)),
                number(drafts.acceptance_length, 3),
                " ".join(f"{share:.3f}".lstrip("0") for share in drafts.per_position),
            )
    made.caption = "length: tokens per verification of such a draft, bonus included."
    return made


def _compared(name: str, comparison: Comparison) -> Table:
    columns = (name, VLLM_EAGLE3, "difference", "standard error", "in errors")
    made = table("Acceptance of the same drafter in both engines", "position", *columns)
    for position, estimate in enumerate(comparison.positions, start=1):
        made.add_row(str(position), *_row(estimate))
    if comparison.length is not None:
        made.add_section()
        made.add_row("length", *_row(comparison.length))
    made.caption = (
        f"Share of the drafts that reach a position. Paired bootstrap over {comparison.prompts} "
        "prompts. length: 1 and the sum of the shares, bonus included."
    )
    return made


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
    made = table("Where a round's time goes, ms (share)", "part", *(name for name, _ in told))
    made.caption = "After the first token, by the verifier's clock; the last row by the client's."
    totals = [sum(rounds.parts_ms.values()) for _, rounds in told]
    for part, label in PARTS.items():
        values = [rounds.parts_ms[part] for _, rounds in told]
        shares = (v / t if t else 0.0 for v, t in zip(values, totals, strict=True))
        made.add_row(label, *(f"{v:.2f} ({s:4.0%})" for v, s in zip(values, shares, strict=True)))
    made.add_section()
    made.add_row("sum", *(f"{total:.2f} (100%)" for total in totals))
    made.add_row("seen by the client", *(f"{r.client_ms:.2f}       " for _, r in told))
    return made


def describe(agreement: Agreement) -> str:
    """One sentence on whether an arm wrote what plain decoding did."""
    places = agreement.differing_at
    if not places:
        same = f"all {agreement.compared} outputs are equal"
        return f"{agreement.arm} and plain: {same}, token by token."
    return (
        f"{agreement.arm} and plain: {len(places)} of {agreement.compared} outputs differ, first "
        f"at token {min(places)} (median of their first differences: {median(places):g})."
    )
