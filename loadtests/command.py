"""What the commands of this package have in common: how they end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from loadtests.result import RequestFailed
from specwire.settings import StartError


def run(program: str, main: Callable[[], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run a command to its end and exit with its status; 2 where it cannot begin or go on."""
    try:
        status = asyncio.run(main())
    except (StartError, RequestFailed) as error:
        print(f"{program}: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
