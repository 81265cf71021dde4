"""What a part found: figures beside their bars, written as they come."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Check:
    """One figure. It passes up to its bar, or from it on with `least`; without one it is told.

    Where a `name` says it all, there is no figure and `passed` stands alone; `said` is what else
    there is to say.
    """

    name: str
    passed: bool
    figure: float | None = None
    bar: float | None = None
    least: bool = False
    unit: str = ""
    said: str = ""

    @property
    def strain(self) -> float:
        """How near the figure comes to its bar: 1 on it, more beyond; 0 without one."""
        if self.figure is None or self.bar is None:
            return 0.0
        above, below = (self.bar, self.figure) if self.least else (self.figure, self.bar)
        return above / below if below > 0 else math.inf if above > below else 1.0

    def __str__(self) -> str:
        words = [self.name]
        if self.figure is not None:
            words[0] += f" {shown(self.figure)}{self.unit and f' {self.unit}'}"
        if self.bar is not None:
            words.append(f"at {'least' if self.least else 'most'} {shown(self.bar)}")
        return ", ".join([*words, *([self.said] if self.said else [])])


def shown(figure: float) -> str:
    """A number with as many digits as are worth reading."""
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}"


@dataclass(slots=True)
class Findings:
    """Collects the checks of a part, which begin with none, in the file `path`.

    Bars of speed are held against figures where `fast`: on a CPU they would say nothing.
    """

    path: Path
    fast: bool = True
    tell: Callable[[str], None] = lambda said: None
    checks: list[Check] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def at_most(self, name: str, figure: float, bar: float, unit: str = "") -> bool:
        """A figure that must not be above its bar, nor NaN."""
        return self._add(Check(name, figure <= bar, figure, bar, unit=unit))

    def at_least(self, name: str, figure: float, bar: float, unit: str = "") -> bool:
        """A figure that must not be below its bar, nor NaN."""
        return self._add(Check(name, figure >= bar, figure, bar, least=True, unit=unit))

    def speed(self, name: str, figure: float, bar: float | None, unit: str = "ms") -> bool:
        """A figure that a GPU must not be above; no bar where none is known."""
        if self.fast and bar is not None:
            return self.at_most(name, figure, bar, unit)
        return self.note(name, figure, unit)

    def holds(self, name: str, passed: bool, said: str = "") -> bool:
        """Whether something is as it must be."""
        return self._add(Check(name, passed, said=said))

    def note(self, name: str, figure: float, unit: str = "", said: str = "") -> bool:
        """A figure that nothing is asked of."""
        return self._add(Check(name, True, figure, unit=unit, said=said))

    def know(self, **facts: Any) -> None:
        """Facts for the file alone."""
        self.facts |= facts
        self._write()

    def _add(self, check: Check) -> bool:
        self.checks.append(check)
        self._write()
        self.tell(str(check))
        return check.passed

    def _write(self) -> None:
        made = {"checks": [asdict(check) for check in self.checks], "facts": self.facts}
        partial = self.path.with_name(f"{self.path.name}.partial")
        partial.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)


def read(path: Path) -> tuple[list[Check], Mapping[str, Any]]:
    """Checks and facts that a part has written; none where it has not come that far."""
    if not path.exists():
        return [], {}
    made = json.loads(path.read_text(encoding="utf-8"))
    return [Check(**check) for check in made["checks"]], made["facts"]
