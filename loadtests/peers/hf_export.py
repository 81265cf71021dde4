"""The served target as vLLM loads it: Hugging Face's layout, made of a GGUF file once and kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from loadtests.common.client import Served
from loadtests.common.result import RequestFailed
from loadtests.peers.transformers_peer import TransformersPeer
from specserve.model_source import ModelSource
from specserve.settings import StartError

RECORD = "holdcourse.json"


def cache_folder() -> Path:
    """Where exports are kept."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches).absolute() / "holdcourse" / "exports"


async def prove(target: str, served: Served) -> None:
    """Make sure that `target` is what is served.

    Raises:
        StartError: it cannot be loaded, or is another model.
    """
    async with TransformersPeer.running(target, served.dtype) as peer:
        peer.check(target, served)


async def hugging_face(target: str, served: Served, dtype: str, cache: Path) -> str:
    """The folder or Hugging Face id of `target`, which is made sure to be what is served.

    A GGUF file is exported in the dtype of that name, dequantized by transformers as the verifier
    does it; the export is used again as long as the file is the same.

    Raises:
        StartError: it cannot be loaded, is another model, or the export cannot be written.
    """
    try:
        source = ModelSource.parse(target)
    except ValueError as error:
        raise StartError(f"--peer-target: {error}") from None
    if source.gguf_file is None:
        await prove(target, served)
        return source.location
    folder = _folder(Path(source.location, source.gguf_file), dtype, cache)
    if _fingerprint(folder) != served.fingerprint:
        async with TransformersPeer.running(target, dtype) as peer:
            peer.check(target, served)
            await _export(peer, target, folder)
    return str(folder)


def _folder(file: Path, dtype: str, cache: Path) -> Path:
    stat = file.stat()
    key = f"{file.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}\n{dtype}"
    return cache / f"{file.stem}-{dtype}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _fingerprint(folder: Path) -> str | None:
    """Of the model in a finished export; None where there is none."""
    try:
        fingerprint: str = json.loads((folder / RECORD).read_text())["fingerprint"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return fingerprint


async def _export(peer: TransformersPeer, target: str, folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            partial = Path(temporary, folder.name)
            await peer.save(target, str(partial))
            _finish(partial, folder, peer.fingerprint)
    except (OSError, RequestFailed) as error:
        raise StartError(f"{target} cannot be exported to {folder}: {error}") from None


def _finish(partial: Path, folder: Path, fingerprint: str) -> None:
    """Put a whole export in its place."""
    (partial / RECORD).write_text(json.dumps({"fingerprint": fingerprint}) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
