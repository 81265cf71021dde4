"""One sentence, in place of a traceback, for a command whose packages are not installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import TracebackType


def explain_missing() -> None:
    """From now on, a package that is missing ends the process with a sentence and status 1.

    For packages of commands that need more than `make run` installs.
    """
    otherwise = sys.excepthook

    def explain(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        name = error.name if isinstance(error, ModuleNotFoundError) else None
        package = (name or "").partition(".")[0]
        if not package or find_spec(package) is not None:
            otherwise(kind, error, trace)
            return
        print(
            f"{package} is not installed: this command needs the packages of `make install`.",
            file=sys.stderr,
        )

    sys.excepthook = explain
