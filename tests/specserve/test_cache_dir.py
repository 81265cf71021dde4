"""Which folder is the cache."""

from pathlib import Path

import pytest

from specserve.cache_dir import cache_folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_is_what_the_user_says(home: Path) -> None:
    assert cache_folder("~/mine") == cache_folder("mine") == home / "mine"


def test_it_is_in_the_users_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder("") == home / ".cache" / "holdcourse"
    monkeypatch.setenv("XDG_CACHE_HOME", "/other")
    assert cache_folder("") == Path("/other/holdcourse")
