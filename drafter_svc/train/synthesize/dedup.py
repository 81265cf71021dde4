"""What is not worth training on: turns that loop, and conversations that are there already."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

NGRAM = 8
LOOP_RULE = f"share of {NGRAM}-grams of tokens that occurred earlier in the same turn"
SHINGLE = 3
DUPLICATE_RULE = (
    f"Jaccard similarity of the sets of {SHINGLE} successive words of the user turns, by MinHash"
)
_BANDS, _ROWS = 16, 4


def loop_share(tokens: Sequence[int]) -> float:
    """Share of the n-grams of ``tokens`` that occurred before, 0 for fewer than n tokens."""
    seen: set[tuple[int, ...]] = set()
    count = len(tokens) - NGRAM + 1
    for start in range(count):
        seen.add(tuple(tokens[start : start + NGRAM]))
    return 1 - len(seen) / count if count > 0 else 0.0


class NearDuplicates:
    """Texts kept so far, and whether another one is nearly one of them.

    MinHash with banding (Broder 1997; Leskovec et al., Mining of Massive Datasets, 3.4): texts
    that share a band of their signatures are compared by the signatures' agreement. About 2 KB of
    memory a text.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        size = np.arange(1, _BANDS * _ROWS + 1, dtype=np.uint64)
        self._salts = _mix(size * np.uint64(0x9E3779B97F4A7C15))
        self._signatures: list[npt.NDArray[np.uint64]] = []
        self._bands: dict[tuple[int, bytes], list[int]] = {}

    def add(self, text: str) -> bool:
        """Keep ``text``; False, and nothing is kept, if it is a near-duplicate."""
        signature = self._signature(text)
        keys = [
            (band, signature[_ROWS * band : _ROWS * (band + 1)].tobytes()) for band in range(_BANDS)
        ]
        for other in {index for key in keys for index in self._bands.get(key, ())}:
            if np.mean(self._signatures[other] == signature) > self._limit:
                return False
        for key in keys:
            self._bands.setdefault(key, []).append(len(self._signatures))
        self._signatures.append(signature)
        return True

    def _signature(self, text: str) -> npt.NDArray[np.uint64]:
        words = text.lower().split()
        shingles = {
            " ".join(words[start : start + SHINGLE])
            for start in range(max(1, len(words) - SHINGLE + 1))
        }
        digests = b"".join(blake2b(s.encode(), digest_size=8).digest() for s in sorted(shingles))
        hashes = np.frombuffer(digests, dtype="<u8").astype(np.uint64)
        least: npt.NDArray[np.uint64] = _mix(hashes[:, None] ^ self._salts).min(0)
        return least


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64: each bit of the result depends on all bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
