"""Fixtures that tests of several services use."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tiny_llama import write_tiny_llama
from tests.support.valkey import Valkey


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Valkey]:
    """One server for the whole run; tests that stop a server start a `Valkey` of their own."""
    # A unix socket's path is limited to 107 bytes, which pytest's own folders come close to.
    with tempfile.TemporaryDirectory(prefix="valkey-") as folder:
        server = Valkey(Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture
def valkey(valkey_server: Valkey) -> Valkey:
    """The server of the run, emptied."""
    valkey_server.flush()
    return valkey_server


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama (4 layers, float32) and its tokenizer. Do not write into it."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))
