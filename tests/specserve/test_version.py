from importlib import metadata

import pytest

from specserve.version import UNKNOWN, version


def test_the_version_is_that_of_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    assert version() == metadata.version("holdcourse")

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert version() == UNKNOWN
