"""Try all families of causal models that transformers knows: `python -m tests.families [NAME ...]`.

Ends with a table, and with status 1 unless each family is exact or refused in a sentence.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import structlog
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.families.walk import Outcome, outcome

_CLASS = re.compile(r"\b\w+(ForCausalLM|LMHeadModel|Attention)\b")


def main() -> None:
    """Walk, print, and say by the status whether all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.families", description=__doc__)
    parser.add_argument("families", nargs="*", help="model types; all of them by default")
    parser.add_argument("--markdown", type=Path, help="write the table to this file, too")
    asked = parser.parse_args()
    _quiet()
    names = asked.families or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    console = Console()
    steps = track(names, "Trying families", console=Console(stderr=True))
    outcomes = [outcome(name) for name in steps]
    console.print(_table(outcomes))
    counts = Counter(each.kind for each in outcomes)
    console.print(", ".join(f"{count} {kind}" for kind, count in counts.most_common()))
    if asked.markdown:
        asked.markdown.write_text(_markdown(outcomes))
    sys.exit(any(each.kind in ("wrong", "failed") for each in outcomes))


def _quiet() -> None:
    """Nothing but progress and the table: models of random weights are warned of at every turn."""
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table("family", "outcome", "sentence")
    styles = {"exact": "green", "refused": "yellow"}
    for family, kind, sentence in outcomes:
        table.add_row(family, f"[{styles.get(kind, 'red')}]{kind}[/]", sentence)
    return table


def _markdown(outcomes: Sequence[Outcome]) -> str:
    """Families by what became of them, those side by side that are refused alike."""
    alike: dict[str, list[str]] = {}
    for family, kind, sentence in sorted(outcomes, key=lambda each: each.kind):
        reason = _CLASS.sub("it", sentence.removeprefix("target: ").replace(family, "it"))
        reason = reason.removeprefix("it cannot be served: ").rstrip(".")
        alike.setdefault(f"{kind}: {reason}" if reason else kind, []).append(family)
    rows = [f"| {', '.join(names)} | {what} |" for what, names in alike.items()]
    return "\n".join(["| families | outcome |", "|---|---|", *rows]) + "\n"


if __name__ == "__main__":
    main()
