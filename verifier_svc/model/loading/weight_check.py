"""A model whose weights are those of its files: none made up, none left unread.

transformers fills what a checkpoint lacks with random numbers, and leaves what the model has no
place for. Either is another model than the one that was trained.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoModelForCausalLM
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

# Tensors that a decoder of text does without: tables and masks that older versions saved, parts
# that see and hear, and heads of other tasks.
_LEFT = re.compile(
    r"(^|\.)("
    r"inv_freq$|position_ids$|causal_mask$|(self_)?(attn|attention)\.(masked_)?bias$|"
    r"(\w+_)?(vision|visual|image|audio|speech)(_\w+)?\.|(multi_modal|mm)_projector\.|"
    r"(mtp|medusa)\w*\.|(score|classifier|v_head|value_head|reward_head)\."
    r")"
)
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_CONVERSION = re.compile(r"^(\S+)\s*\|\W*(?:\x1b\[\S*?m)?CONVERSION", re.MULTILINE)
_NUMBERS = re.compile(r"(\d+)")
_INTEGERS = {"BOOL", "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64"}


def require_all_weights(path: str, **how: Any) -> Any:
    """What `from_pretrained` makes of a path, or a Hugging Face id, with `how`.

    Raises:
        ValueError: a weight is missing, of another shape, not read, or of integers.
    """
    with _unreported() as tables:
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                path, output_loading_info=True, ignore_mismatched_sizes=True, **how
            )
        except RuntimeError as error:
            if names := _CONVERSION.findall("".join(tables)):
                raise ValueError(
                    f"{some(names)} cannot be put together of the weights, of which some are "
                    "missing or of another shape"
                ) from error
            raise
    kind = model.config.model_type
    for name, held, wanted in sorted(found["mismatched_keys"]):
        raise ValueError(
            f"the weights have {name} of shape {list(held)}, its configuration says {list(wanted)}"
        )
    if missing := found["missing_keys"]:
        raise ValueError(f"the weights have no {some(missing)}")
    config = model.config.get_text_config()
    if unread := [name for name in found["unexpected_keys"] if not _is_left(name, config)]:
        raise ValueError(f"the weights have {some(unread)}, which {kind} does not read")
    quantized = getattr(model, "hf_quantizer", None) or hasattr(config, "quantization_config")
    if not quantized and (integers := list(_integers(path))):
        raise ValueError(
            f"the weights have {some(integers)} as integers, and nothing says what they stand for"
        )
    return model


def _is_left(name: str, config: Any) -> bool:
    """Whether a model computes the same without a tensor of this name."""
    layer = _LAYER.search(name)
    layers, more = config.num_hidden_layers, getattr(config, "num_nextn_predict_layers", 0) or 0
    if layer is not None and layers <= int(layer[1]) < layers + more:
        return True
    return _LEFT.search(name) is not None


def some(names: Collection[str]) -> str:
    """The first of several names, and how many there are."""
    # Layer 9 goes before layer 10.
    first, *others = sorted(names, key=lambda name: (_NUMBERS.sub(_padded, name), name))
    return f"{first} and {len(others)} more" if others else first


def _padded(number: re.Match[str]) -> str:
    return number[0].zfill(6)


def _integers(path: str) -> Iterator[str]:
    """Names of weights that safetensors files of this path keep as integers."""
    index = _stored(path, SAFE_WEIGHTS_INDEX_NAME)
    shards = {SAFE_WEIGHTS_NAME}
    if index is not None:
        shards = set(json.loads(Path(index).read_text())["weight_map"].values())
    for shard in sorted(shards):
        if (file := _stored(path, shard)) is None:
            continue
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no dict)
                if name.endswith("weight") and tensors.get_slice(name).get_dtype() in _INTEGERS:
                    yield name


def _stored(path: str, name: str) -> str | None:
    """Where a file that has been read lies; None if the path has none of that name."""
    found: str | None = cached_file(
        path,
        name,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found


@contextmanager
def _unreported() -> Iterator[list[str]]:
    """Keep transformers' tables of what did not fit from the log: a sentence says it."""
    tables: list[str] = []

    def other(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "LOAD REPORT" not in text:
            return True
        tables.append(text)
        return False

    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(other)
    try:
        yield tables
    finally:
        log.removeFilter(other)
