"""What the target said about a document, kept on disk for later epochs."""

import errno
import os
import threading
import zlib
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from drafter_svc.train.objective.teacher import TargetTopTokens
from drafter_svc.train.run.distill_batch import TargetOutputs
from drafter_svc.train.target.feature_source import Captured


class FeatureCache:
    """Materials of documents by their index, in one file of at most ``limit`` bytes.

    ``features.bin`` holds the tensors back to back, ``features.index`` a line for each document,
    behind one with ``key``: files of another key are discarded. The documents that fit, in the
    order of their indices, have a place; others are never kept, so that what is kept does not
    depend on time. A checksum guards each document: one that was cut short or damaged is a miss.
    A full disk ends the filling, not the run. Methods may be called from several threads.
    """

    def __init__(
        self,
        folder: Path,
        key: str,
        *,
        limit: int,
        lengths: Sequence[int],
        features: int,
        final: int,
    ) -> None:
        """``lengths`` of documents in tokens, ``features`` and ``final`` of rows in elements."""
        self._widths, self._lock = (features, final), threading.Lock()
        ends = accumulate(length * self.row_bytes for length in lengths)
        self._places = sum(end <= limit for end in ends)
        self.holds_all = self._places == len(lengths)
        self._entries: dict[int, tuple[int, int, int]] = {}
        self.problem = ""
        folder.mkdir(parents=True, exist_ok=True)
        index, data = folder / "features.index", folder / "features.bin"
        lines = index.read_text().splitlines() if index.exists() else []
        if not lines or lines[0] != key:
            index.write_text(key + "\n")
            data.unlink(missing_ok=True)
        for line in lines[1:] if lines and lines[0] == key else ():
            fields = line.split()
            if len(fields) == 4:
                document, *entry = map(int, fields)
                self._entries[document] = (entry[0], entry[1], entry[2])
        self._data, self._index = data.open("a+b", buffering=0), index.open("a")

    @property
    def row_bytes(self) -> int:
        """Bytes of one token: two bf16 rows, an argmax and a log-sum-exp."""
        return 2 * sum(self._widths) + 8

    def get(self, document: int) -> TargetOutputs | None:
        """The material of a document, if it is here and whole."""
        with self._lock:
            entry = self._entries.get(document)
            if entry is None:
                return None
            offset, tokens, checksum = entry
            self._data.seek(offset)
            blob = bytearray(self._data.read(tokens * self.row_bytes))
        if len(blob) != tokens * self.row_bytes or zlib.crc32(blob) != checksum:
            return None
        return self._decode(torch.frombuffer(blob, dtype=torch.uint8), tokens)

    def put(self, document: int, material: TargetOutputs) -> None:
        """Keep the material of a document, if it has a place."""
        with self._lock:
            tokens = len(material.verdicts.best)
            if document in self._entries or document >= self._places or self.problem:
                return
            blob = _encode(material)
            try:
                self._data.seek(0, 2)
                offset = self._data.tell()
                if self._data.write(blob) != len(blob):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._index.write(f"{document} {offset} {tokens} {zlib.crc32(blob)}\n")
                self._index.flush()
            except OSError as error:
                self.problem = f"the feature cache takes no more: {error.strerror}"
                return
            self._entries[document] = (offset, tokens, zlib.crc32(blob))

    def _decode(self, blob: Tensor, tokens: int) -> TargetOutputs:
        widths = (2 * width * tokens for width in self._widths)
        best, total, features, final = torch.split(blob, [4 * tokens, 4 * tokens, *widths])
        return TargetOutputs(
            Captured(
                features.view(torch.bfloat16).view(tokens, -1),
                final.view(torch.bfloat16).view(tokens, -1),
            ),
            TargetTopTokens(best.view(torch.int32), total.view(torch.float32)),
        )


def _encode(material: TargetOutputs) -> bytes:
    captured, verdicts = material.captured, material.verdicts
    parts = (verdicts.best, verdicts.total, captured.features, captured.final)
    return b"".join(
        part.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() for part in parts
    )
