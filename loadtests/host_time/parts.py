"""CPU time of one thread, by part of its work."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

REST = "rest"


class Parts:
    """Seconds of the thread that calls what is `timed`, each part without those inside it.

    What is in none of them is `REST`.
    """

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._inside = [REST]
        self._since = 0.0

    def cut(self) -> dict[str, float]:
        """What was spent since the last cut; the first of a thread means nothing."""
        self._note()
        spent, self._spent = self._spent, {}
        return spent

    def time(self, owner: Any, name: str, part: str) -> None:
        """Time a method of an object from now on.

        Raises:
            AttributeError: it has none of that name.
        """
        function: Callable[..., Any] = getattr(owner, name)

        @wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            self._note()
            self._inside.append(part)
            try:
                return function(*arguments, **named)
            finally:
                self._note()
                self._inside.pop()

        setattr(owner, name, timed)

    def _note(self) -> None:
        now = time.thread_time()
        part = self._inside[-1]
        self._spent[part] = self._spent.get(part, 0.0) + now - self._since
        self._since = now


def after(owner: Any, name: str, note: Callable[[], None]) -> None:
    """Call `note` after each call of a method of an object from now on."""
    function: Callable[..., Any] = getattr(owner, name)

    @wraps(function)
    def noted(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        note()
        return result

    setattr(owner, name, noted)
