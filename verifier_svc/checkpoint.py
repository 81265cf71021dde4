"""A target as transformers finds it: configuration, weights, and the files of its tokenizer."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from specwire.settings import StartError
from specwire.target import TargetSource
from verifier_svc.families import why_not
from verifier_svc.gguf_fields import scaled

logger = logging.getLogger(__name__)

NO_TOKENIZER = "target: there is no tokenizer.json, nor are there files that one can be made of."
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class TargetError(ValueError):
    """The target cannot be served; one sentence says why."""


@contextmanager
def loading(source: TargetSource) -> Iterator[None]:
    """Turns what transformers raises for a broken or missing model, of many kinds, into one.

    Raises:
        TargetError: in place of all but itself and StartError.
    """
    try:
        yield
    except (TargetError, StartError):
        raise
    except Exception as error:
        logger.debug("loading failed", exc_info=True)
        sentence = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise TargetError(f"target: {source.name} cannot be loaded: {sentence}") from error


def read_config(source: TargetSource, *, trust_remote_code: bool) -> Any:
    """The configuration of a target.

    Raises:
        TargetError: it is of a family that is not served, or a GGUF file says more of it than is
            read.
    """
    config = AutoConfig.from_pretrained(
        source.path, trust_remote_code=trust_remote_code, **source.arguments
    )
    if (reason := why_not(config)) is not None:
        raise TargetError(f"target: {reason}.")
    if source.arguments and source.file is not None:
        return scaled(config, source.file)
    return config


def read_model(source: TargetSource, **how: Any) -> Any:
    """The model as transformers has it; a GGUF file's weights are dequantized."""
    transformers.utils.logging.disable_progress_bar()
    if source.arguments:
        how["quantization_config"] = GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(source.path, **source.arguments, **how)


def _lacks_tokenizer(source: TargetSource) -> bool:
    """Whether the target is a folder without tokenizer.json.

    Of other files of a tokenizer one can be made where transformers knows their kind.
    """
    folder = Path(source.path)
    return not source.arguments and folder.is_dir() and not (folder / "tokenizer.json").exists()


def load_tokenizer_files(source: TargetSource, *, trust_remote_code: bool) -> dict[str, bytes]:
    """The files from which text becomes tokens, by name.

    Raises:
        TargetError: the target has no tokenizer that can be written as tokenizer.json.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.path, trust_remote_code=trust_remote_code, **source.arguments
        )
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            paths = (Path(folder) / name for name in TOKENIZER_FILES)
            files = {path.name: path.read_bytes() for path in paths if path.is_file()}
    except Exception as error:
        if _lacks_tokenizer(source):
            raise TargetError(NO_TOKENIZER) from error
        reason = " ".join(str(error).split()) or repr(error)
        raise TargetError(f"target: the tokenizer cannot be loaded: {reason}") from error
    # Without its files transformers makes one of a family's special tokens.
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise TargetError(NO_TOKENIZER)
    if "tokenizer.json" not in files:
        raise TargetError("target: its tokenizer has no fast form (tokenizer.json).")
    return files
