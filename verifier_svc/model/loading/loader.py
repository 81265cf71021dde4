"""A target as transformers finds it: configuration, weights, and the files of its tokenizer."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoTokenizer, GgufConfig

from specserve import chat_template
from specserve.model_source import ModelSource
from specserve.settings import StartError
from verifier_svc.model.loading.gguf_fields import scaled
from verifier_svc.model.loading.gguf_file import damaged, open_gguf
from verifier_svc.model.loading.supported_models import why_not
from verifier_svc.model.loading.weight_check import require_all_weights

logger = logging.getLogger(__name__)

NO_TOKENIZER = "target: there is no tokenizer.json, nor are there files that one can be made of."
# Characters of what a library says that are passed on.
_LONG = 400
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class TargetError(ValueError):
    """The target cannot be served; one sentence says why."""


@contextmanager
def loading(source: ModelSource) -> Iterator[None]:
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
        raise TargetError(f"target: {source.name} cannot be loaded: {reason_of(error)}.") from error


def reason_of(error: Exception) -> str:
    """The first paragraph of what an error says, on one line; its kind where that is a bare key."""
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    if isinstance(error, ZeroDivisionError):
        return "one of the sizes in its configuration is 0"
    words = " ".join(str(said).strip().partition("\n\n")[0].split()).rstrip(".")
    if not words or (said is not error and " " not in words):
        words = repr(error)
    return words if len(words) <= _LONG else f"{words[:_LONG]}..."


def read_config(source: ModelSource, *, trust_remote_code: bool) -> Any:
    """The configuration of a target.

    Raises:
        TargetError: it is of a family that is not served.
        ValueError: a GGUF file is damaged, or says less or more of it than is read.
    """
    reader = open_gguf(source.file) if source.arguments and source.file is not None else None
    try:
        config = AutoConfig.from_pretrained(
            source.path, trust_remote_code=trust_remote_code, **source.arguments
        )
    except OSError as error:
        if reader is None:
            raise
        raise damaged("its metadata has text that cannot be read") from error
    if (reason := why_not(config)) is not None:
        raise TargetError(f"target: {reason}.")
    return config if reader is None else scaled(config, reader)


def read_model(source: ModelSource, **how: Any) -> Any:
    """The model as transformers has it; a GGUF file's weights are dequantized.

    Raises:
        ValueError: what the files hold is not what the model reads.
    """
    transformers.utils.logging.disable_progress_bar()
    if source.arguments:
        how["quantization_config"] = GgufConfig(dequantize=True)
    return require_all_weights(source.path, **source.arguments, **how)


def _lacks_tokenizer(source: ModelSource) -> bool:
    """Whether the target is a folder without tokenizer.json.

    Of other files of a tokenizer one can be made where transformers knows their kind.
    """
    folder = Path(source.path)
    return not source.arguments and folder.is_dir() and not (folder / "tokenizer.json").exists()


def load_tokenizer_files(source: ModelSource, *, trust_remote_code: bool) -> dict[str, bytes]:
    """The files from which text becomes tokens, by name.

    Raises:
        TargetError: the target has no tokenizer that can be written as tokenizer.json, or a chat
            template that gateways cannot read.
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
        raise TargetError(f"target: the tokenizer cannot be loaded: {reason_of(error)}.") from error
    # Without its files transformers makes one of a family's special tokens.
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise TargetError(NO_TOKENIZER)
    if "tokenizer.json" not in files:
        raise TargetError("target: its tokenizer has no fast form (tokenizer.json).")
    try:
        chat_template.from_files(files)
    except chat_template.TemplateError as error:
        raise TargetError(f"target: {str(error).rstrip('.')}.") from error
    return files
