"""What the commands of this package have in common: how they end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, NoReturn, Self

from loadtests.common.result import RequestFailed
from specserve.settings import StartError

INTERRUPTED = 130


class UntilInterrupted:
    """A block that Ctrl-C ends, after which the program goes on with what it has."""

    interrupted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> bool:
        task = asyncio.current_task()
        if task is None or kind is not asyncio.CancelledError:
            return False
        task.uncancel()
        self.interrupted = True
        return True


def run(program: str, main: Callable[[], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run a command to its end and exit with its status; 2 where it cannot begin or go on."""
    try:
        status = asyncio.run(main())
    except (StartError, RequestFailed) as error:
        print(f"{program}: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)
