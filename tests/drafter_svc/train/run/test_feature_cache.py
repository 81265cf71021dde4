"""The feature cache: bits come back, damage and foreign files are misses, the limit holds."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from drafter_svc.train.objective.teacher import TargetTopTokens
from drafter_svc.train.run.distill_batch import TargetOutputs
from drafter_svc.train.run.feature_cache import FeatureCache
from drafter_svc.train.target.feature_source import Captured

FEATURES, FINAL = 9, 3


def material(tokens: int, seed: int = 0) -> TargetOutputs:
    torch.manual_seed(seed)
    return TargetOutputs(
        Captured(torch.randn(tokens, FEATURES).bfloat16(), torch.randn(tokens, FINAL).bfloat16()),
        TargetTopTokens(torch.randint(-1, 9, (tokens,), dtype=torch.int32), torch.randn(tokens)),
    )


def open_cache(folder: Path, key: str = "key", limit: int = 10**6) -> FeatureCache:
    lengths = [12, 6, 4, 4, 4, 4, 4, 5]
    return FeatureCache(folder, key, limit=limit, lengths=lengths, features=FEATURES, final=FINAL)


def same(one: TargetOutputs | None, two: TargetOutputs) -> bool:
    if one is None:
        return False
    pairs = [
        (one.captured.features, two.captured.features),
        (one.captured.final, two.captured.final),
        (one.verdicts.best, two.verdicts.best),
        (one.verdicts.total, two.verdicts.total),
    ]
    return all(torch.equal(a, b) for a, b in pairs)


def test_what_was_put_comes_back_in_this_run_and_the_next(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    for document, tokens in ((7, 5), (2, 1), (0, 12)):
        cache.put(document, material(tokens, document))
    for opened in (cache, open_cache(tmp_path)):
        assert same(opened.get(7), material(5, 7))
        assert same(opened.get(2), material(1, 2))
        assert same(opened.get(0), material(12, 0))
        assert opened.get(1) is None


def test_a_cache_of_other_documents_is_discarded(tmp_path: Path) -> None:
    open_cache(tmp_path).put(0, material(5))
    assert open_cache(tmp_path, key="another").get(0) is None
    assert (tmp_path / "features.bin").stat().st_size == 0


def test_damaged_and_cut_entries_are_misses(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    cache.put(0, material(5, 0))
    cache.put(1, material(5, 1))
    cache.put(2, material(5, 2))
    data = tmp_path / "features.bin"
    blob = bytearray(data.read_bytes())
    blob[cache.row_bytes * 5 + 3] ^= 1
    data.write_bytes(blob[:-1])
    again = open_cache(tmp_path)
    assert same(again.get(0), material(5, 0))
    assert again.get(1) is None
    assert again.get(2) is None


def test_a_run_that_was_killed_while_writing_goes_on(tmp_path: Path) -> None:
    cache = open_cache(tmp_path)
    cache.put(0, material(5, 0))
    with (tmp_path / "features.bin").open("ab") as data:
        data.write(b"half of a document")
    with (tmp_path / "features.index").open("a") as index:
        index.write("1 3")
    again = open_cache(tmp_path)
    again.put(2, material(4, 2))
    assert again.get(1) is None
    assert same(again.get(2), material(4, 2))
    assert same(open_cache(tmp_path).get(0), material(5, 0))


def test_the_documents_that_fit_have_a_place(tmp_path: Path) -> None:
    assert open_cache(tmp_path).holds_all
    limit = open_cache(tmp_path).row_bytes * 21
    small = open_cache(tmp_path / "small", limit=limit)
    for document, tokens in ((7, 5), (2, 4), (1, 6), (0, 12)):
        small.put(document, material(tokens, document))
    assert [small.get(i) is not None for i in (0, 1, 2, 7)] == [True, True, False, False]
    assert (tmp_path / "small" / "features.bin").stat().st_size <= limit
    assert not small.holds_all


def test_a_full_disk_ends_the_filling_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = open_cache(tmp_path)
    cache.put(0, material(5, 0))

    class Full:
        def __init__(self, data: Any) -> None:
            self.seek, self.tell, self.read = data.seek, data.tell, data.read

        def write(self, blob: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "_data", Full(cache._data))
    cache.put(1, material(5, 1))
    assert "No space left" in cache.problem
    assert cache.get(1) is None
    assert same(cache.get(0), material(5, 0))
