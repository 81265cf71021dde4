"""What the claims of exactness are tested on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_llama import write_tiny_llama


@pytest.fixture(scope="session")
def small_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of 16 tokens: few enough to count every pair of them."""
    folder = tmp_path_factory.mktemp("small-vocabulary")
    return write_tiny_llama(folder, seed=3, layers=2, vocab_size=16)
