"""What a part says of itself while it starts: the lines of its log that are for people too."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

OURS = ("verifier_svc", "drafter_svc", "gateway", "specwire", "__main__")
WARNINGS = {"warning", "error", "critical"}


@dataclass(frozen=True)
class Entry:
    """One line; `warning` tells what somebody should know from what merely goes on."""

    text: str
    warning: bool


class StartupLog:
    """Follows a log from its present end on, which others append to."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._place = log.stat().st_size if log.exists() else 0

    def news(self) -> list[Entry]:
        """What our own services have logged since the last call; half a line waits for its rest."""
        with suppress(OSError), self._log.open("rb") as log:
            log.seek(self._place)
            lines, newline, _ = log.read().rpartition(b"\n")
            self._place += len(lines) + len(newline)
            return [entry for line in lines.splitlines() if (entry := _entry(line))]
        return []


def _entry(line: bytes) -> Entry | None:
    """None for what is not a line of `specserve.logs`, or is a library's."""
    try:
        told = json.loads(line)
        text, logger, level = str(told["event"]), str(told["logger"]), told["level"]
    except (ValueError, LookupError, TypeError):
        return None
    if logger.partition(".")[0] not in OURS:
        return None
    because = f" ({told['reason']})" if "reason" in told else ""
    return Entry(text + because, level in WARNINGS)
