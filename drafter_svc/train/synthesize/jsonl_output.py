"""Records on disk, and beside them where they come from and how far the synthesis is."""

import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drafter_svc.train.synthesize.writer import Outcome

_SAVE_SECONDS = 1.0


class Output:
    """``OUT`` with the records in order of their index, and ``OUT.meta.json``.

    The meta file is replaced at once, after the records that it counts have reached the disk. A
    synthesis that was killed goes on from it: records beyond its count are cut off and made
    again, the same ones.

    Raises ``ValueError`` where another synthesis was or is at work on ``path``.
    """

    def __init__(self, path: str | Path, origin: dict[str, Any], total: int) -> None:
        """Continue ``path``, or begin it. ``origin`` must be the same when it is continued."""
        self.path = Path(path)
        self.meta_path = self.path.with_name(self.path.name + ".meta.json")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab+")
        try:
            self._begin(origin, total)
        except BaseException:
            self._file.close()
            raise

    def _begin(self, origin: dict[str, Any], total: int) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"out: another synthesis is writing {self.path}") from None
        self._began = time.monotonic()
        self._saved = self._began
        size = self.path.stat().st_size
        if self.meta_path.exists():
            self.meta = self._read(origin, size)
        elif size:
            raise ValueError(
                f"out: {self.path} was not made by synthesize (no {self.meta_path.name})"
            )
        else:
            self.meta = {
                **origin,
                "total": total,
                "next": 0,
                "bytes": 0,
                "kept": 0,
                "dropped": {},
                "cut": {},
                "finish_reasons": {},
                "user_tokens": 0,
                "answer_tokens": 0,
                "seconds": 0.0,
            }
        self._before: float = self.meta["seconds"]
        self._file.truncate(self.meta["bytes"])
        self.save()

    @property
    def next(self) -> int:
        """Index of the conversation that comes next."""
        return int(self.meta["next"])

    def records(self) -> Iterator[dict[str, Any]]:
        """The records that are there."""
        with self.path.open("rb") as lines:
            for line in lines:
                yield json.loads(line)

    def add(self, outcome: Outcome) -> None:
        """Take the outcome of conversation ``next``. Raises ``OSError`` on a full disk."""
        meta = self.meta
        if outcome.record is None:
            _count(meta["dropped"], outcome.dropped)
        else:
            line = json.dumps(outcome.record, ensure_ascii=False).encode() + b"\n"
            self._file.write(line)
            meta["bytes"] += len(line)
            meta["kept"] += 1
            meta["user_tokens"] += outcome.user_tokens
            meta["answer_tokens"] += outcome.answer_tokens
            _count(meta["finish_reasons"], outcome.record["finish_reason"])
            if outcome.cut:
                _count(meta["cut"], outcome.cut)
        meta["next"] += 1
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Bring everything to the disk. Raises ``OSError`` on a full one."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._saved = time.monotonic()
        self.meta["seconds"] = round(self._before + self._saved - self._began, 1)
        partial = self.meta_path.with_name(self.meta_path.name + ".partial")
        partial.write_text(json.dumps(self.meta, indent=2, ensure_ascii=False) + "\n")
        partial.replace(self.meta_path)

    def close(self) -> None:
        """Let go of the files without saving."""
        self._file.close()

    def _read(self, origin: dict[str, Any], size: int) -> dict[str, Any]:
        meta: dict[str, Any] = json.loads(self.meta_path.read_text())
        for group in ("target", "settings", "prompts"):
            if meta[group] != json.loads(json.dumps(origin[group])):
                changed = _difference(meta[group], origin[group])
                raise ValueError(
                    f"out: {self.path} was made with other {group} ({changed}); "
                    "give another file, or the same"
                )
        if size < meta["bytes"]:
            raise ValueError(
                f"out: {self.path} is shorter than {self.meta_path.name} says; remove both"
            )
        return meta


def _count(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _difference(old: Any, new: Any) -> str:
    if isinstance(old, dict):
        names = [name for name in new if old.get(name) != new[name]]
        return ", ".join(f"{name} was {old.get(name)}" for name in names)
    return f"they were {old}"


def table(meta: dict[str, Any]) -> str:
    """What a finished synthesis made, for people."""
    kept, tokens, seconds = meta["kept"], meta["answer_tokens"], max(meta["seconds"], 1e-9)
    rows: list[tuple[str, object]] = [
        ("conversations kept", f"{kept} of {meta['next']}"),
        *((f"  dropped: {reason}", n) for reason, n in _sorted(meta["dropped"])),
        *((f"  shortened: {reason}", n) for reason, n in _sorted(meta["cut"])),
        ("answer tokens", tokens),
        ("  per conversation", round(tokens / max(kept, 1), 1)),
        ("  per second", round(tokens / seconds, 1)),
        *((f"ended by {reason}", n) for reason, n in _sorted(meta["finish_reasons"])),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _sorted(counts: dict[str, int]) -> list[tuple[str, int]]:
    return Counter(counts).most_common()
