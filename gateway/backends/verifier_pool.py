"""All verifiers, and which of them a session may go to."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from gateway.backends.served_model import ServedModel
from gateway.backends.verifier import BadDescriptionError, Verifier
from gateway.errors import unavailable
from gateway.tasks import end


class VerifierPool:
    """The verifiers of one model."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.verifiers = {address: Verifier(address, self._accept) for address in addresses}
        self._model: ServedModel | None = None
        self._watches: list[asyncio.Task[None]] = []
        self.closed = False

    @property
    def model(self) -> ServedModel:
        """The model that is served.

        Raises:
            ApiError: 503, no verifier has described one yet.
        """
        if self._model is None:
            raise unavailable("No verifier has been reached yet; try again.")
        return self._model

    def start(self) -> None:
        self._watches = [asyncio.create_task(v.watch()) for v in self.verifiers.values()]

    async def close(self) -> None:
        """Cancel what still runs; nothing can be placed any more."""
        self.closed = True
        await end(self._watches)
        for verifier in self.verifiers.values():
            verifier.up = False
            await verifier.close()

    def candidates(self, model: ServedModel, *, avoid: Collection[str] = ()) -> list[str]:
        """Addresses of live verifiers of `model`, least loaded first, those in `avoid` last."""
        live = [
            verifier
            for verifier in self.verifiers.values()
            if verifier.up
            and verifier.model is not None
            and verifier.model.fingerprint == model.fingerprint
        ]
        live.sort(key=lambda verifier: (verifier.address in avoid, verifier.running))
        return [verifier.address for verifier in live]

    def _accept(self, candidate: Verifier, model: ServedModel) -> None:
        """Let a new model in only when nobody serves the old one any more."""
        old = self._model
        others = [v for v in self.verifiers.values() if v.up and v is not candidate]
        if old is not None and old.fingerprint != model.fingerprint and others:
            raise BadDescriptionError(
                f"it serves {model.wire.name} ({model.fingerprint[:16]}), "
                f"the others {old.wire.name} ({old.fingerprint[:16]})"
            )
        if old is None or not others:
            self._model = model
