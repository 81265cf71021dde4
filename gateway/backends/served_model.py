"""The model that the verifiers serve, as far as the gateway has to know it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from gateway.errors import ApiError, shown
from gateway.text.tokenizer import TextTokenizer
from specserve import chat_template
from specwire.v1 import verifier_pb2


class ServedModel:
    """Limits, names, tokenizer and chat template of one model."""

    def __init__(self, wire: verifier_pb2.Model, files: Mapping[str, bytes]) -> None:
        """Build from what `DescribeModel` sent.

        Raises:
            TokenizerError: files from which no tokenizer can be built.
            TemplateError: a chat template that cannot be read.
        """
        self.wire = wire
        self.name = wire.name.rstrip("/").rpartition("/")[2] or "model"
        self.fingerprint = wire.fingerprint
        self.max_len = wire.max_model_len
        self.vocab_size = wire.vocab_size
        self.eos_token_ids = frozenset(wire.eos_token_ids)
        self.created = int(time.time())
        self.tokenizer = TextTokenizer(files)
        self.template = chat_template.from_files(files)

    @property
    def system_fingerprint(self) -> str:
        return f"fp_{self.fingerprint[:16]}"

    def check_name(self, name: str) -> None:
        """Refuse a request that is meant for another model.

        Raises:
            ApiError: 404, `model_not_found`.
        """
        if name not in (self.name, self.wire.name, "default"):
            raise ApiError(
                404,
                f"There is no model {shown(name)!r} here; {self.name!r} is served.",
                param="model",
                code="model_not_found",
            )

    def card(self) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "holdcourse",
            "root": self.wire.name,
            "dtype": self.wire.dtype,
            "device": self.wire.device,
            "kernels": self.wire.kernels or None,
            "fingerprint": self.fingerprint,
            "parent": None,
            "max_model_len": self.max_len,
        }
