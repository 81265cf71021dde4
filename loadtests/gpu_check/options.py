"""What a run is asked for. Needs nothing but Python: it is read before anything else is there."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.gpu_check.parts import PARTS, SERVED, Part

PROGRAM = "loadtests.gpu_check"
SIZES = ("full", "small", "tiny")


class OptionError(Exception):
    """A bad value; one sentence names the option and what it must be."""


@dataclass(frozen=True, slots=True)
class Options:
    """`size` is one of SIZES, None for what the device takes; `minutes` bound the whole run.

    `patience` is a factor on every part's own limit; `parts` are those to run, none stands for all.
    """

    out: Path
    wheels: Path | None = None
    target: Path | None = None
    device: str = "auto"
    size: str | None = None
    minutes: float = 8.0
    patience: float = 1.0
    parts: tuple[str, ...] = ()

    @classmethod
    def read(cls, arguments: Sequence[str] | None = None) -> Options:
        """Read the command line, by default the process's.

        Raises:
            OptionError: a value that cannot be used.
        """
        given = _parser().parse_args(arguments)
        wheels, target = (Path(path) if path else None for path in (given.wheels, given.target))
        if wheels is not None and not wheels.is_dir():
            raise OptionError(f"--wheels: there is no folder {wheels}.")
        if target is not None and not target.exists():
            raise OptionError(f"--target: there is neither a file nor a folder {target}.")
        if not 0 < given.minutes <= 120:
            raise OptionError(f"--minutes: must be above 0 and at most 120, not {given.minutes:g}.")
        if not 0 < given.patience <= 100:
            raise OptionError(
                f"--patience: must be above 0 and at most 100, not {given.patience:g}."
            )
        parts = tuple(given.parts.split(",")) if given.parts else ()
        names = [part.name for part in (*PARTS, SERVED)]
        if unknown := [name for name in parts if name not in names]:
            raise OptionError(f"--parts: {unknown[0]} is none of {', '.join(names)}.")
        out = Path(given.out).absolute()
        if out.exists() and not out.is_dir():
            raise OptionError(f"--out: {out} is not a folder.")
        return cls(
            out=out,
            wheels=wheels,
            target=target and target.absolute(),
            device=given.device,
            size=given.size,
            minutes=given.minutes,
            patience=given.patience,
            parts=parts,
        )

    @property
    def chosen(self) -> list[Part]:
        """The parts to run; the first one tells the others what the device gives."""
        there = [*PARTS, *([SERVED] if self.target else [])]
        return [p for p in there if not self.parts or p is PARTS[0] or p.name in self.parts]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise OptionError(f"{message}; see --help.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        PROGRAM,
        allow_abbrev=False,
        description="Tries every path of a GPU, beside what it should take. On a CPU shapes are "
        "small, work is called in place of being recorded, and times are not judged.",
    )
    add = parser.add_argument
    add("--out", default="build/gpu-check", help="Folder for all results.")
    add("--wheels", help="Folder of wheels that are used without being installed.")
    add("--target", help="A .gguf file or folder that is served at the end, such as SmolLM2's.")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
    add("--size", choices=SIZES, help="Of the shapes; full on a GPU, small on a CPU.")
    add("--minutes", type=float, default=8.0, help="For everything; what is left is skipped.")
    add("--patience", type=float, default=1.0, help="Factor on the limit of each part.")
    add("--parts", help="Some alone, with commas between them; versions are always first.")
    return parser
