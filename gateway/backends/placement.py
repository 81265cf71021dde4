"""Where one request runs."""

from __future__ import annotations

import asyncio

from gateway.backends.served_model import ServedModel
from gateway.backends.session_store import Session, SessionStore
from gateway.backends.verifier_pool import VerifierPool


class Placement:
    """Where the choices of one request run. They move together."""

    def __init__(
        self, fleet: VerifierPool, sessions: SessionStore, model: ServedModel, session_id: str
    ) -> None:
        self._fleet = fleet
        self._sessions = sessions
        self._model = model
        self._session_id = session_id
        self._moving = asyncio.Lock()
        self._current: Session | None = None

    async def place(self, failed: Session | None = None) -> Session | None:
        """Return where to run after `failed`; None while no verifier is live."""
        async with self._moving:
            if self._current is not failed:
                return self._current
            avoid = (failed.verifier,) if failed is not None else ()
            candidates = self._fleet.candidates(self._model, avoid=avoid)
            if not candidates:
                return None
            if failed is not None and candidates[0] != failed.verifier:
                # The session's record still names the verifier that failed.
                candidates = [address for address in candidates if address != failed.verifier]
            self._current = await self._sessions.place(self._session_id, candidates)
            return self._current
