"""A GGUF file whose metadata and tensors are where they should be."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers.integrations.gguf import read_gguf_metadata

# What transformers has defaults for, which are those of other models.
_NEEDED = ("block_count", "context_length", "embedding_length", "attention.head_count")
_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
_TOKENS = "tokenizer.ggml.tokens"


def open_gguf(file: Path) -> Any:
    """A GGUFReader of a file that is whole.

    Raises:
        ValueError: it is damaged, cut short, or one of several.
    """
    from gguf import GGUFReader

    if not file.stat().st_size:
        raise ValueError("the GGUF file is empty")
    try:
        # Only this reader minds lengths that no file has.
        read_gguf_metadata(str(file))
    except (struct.error, UnicodeDecodeError) as error:
        raise damaged("its metadata cannot be read") from error
    try:
        reader = GGUFReader(file)
    except Exception as error:  # of numpy's many kinds
        raise damaged("its tensors cannot be read") from error
    _check_tensors(reader)
    split = reader.fields.get("split.count")
    if split is not None and (parts := split.contents()) != 1:
        raise ValueError(f"the GGUF file is one of {parts}: merge them into one")
    return reader


def check_fields(reader: Any) -> None:
    """Check that a file of a decoder says what is needed of it.

    Raises:
        ValueError: a field is not there, or names a token that is not.
    """
    fields = reader.fields
    architecture = fields["general.architecture"].contents()
    epsilon = next((name for name in _EPSILONS if f"{architecture}.{name}" in fields), _EPSILONS[0])
    for name in (*(f"{architecture}.{name}" for name in (*_NEEDED, epsilon)), _TOKENS):
        if name not in fields:
            raise ValueError(f"the GGUF file has no {name}")
    count = len(fields[_TOKENS].data)
    for name, field in fields.items():
        if name.startswith("tokenizer.ggml.") and name.endswith("_token_id"):
            token = field.contents()
            if not isinstance(token, int) or token >= count:
                raise ValueError(f"the GGUF field {name} is {token}, of {count} tokens")


def damaged(how: str) -> ValueError:
    """The error of a file that cannot be trusted."""
    return ValueError(f"the GGUF file is damaged or cut short: {how}")


def _check_tensors(reader: Any) -> None:
    """Tensors lie side by side: where they do not, one is not of the type or shape that it says."""
    tensors = sorted(reader.tensors, key=lambda tensor: int(tensor.data_offset))
    for one, other in pairwise(tensors):
        end = int(one.data_offset) + int(one.n_bytes)
        if end + -end % reader.alignment != int(other.data_offset):
            raise damaged(f"{one.name} does not end where {other.name} begins")
