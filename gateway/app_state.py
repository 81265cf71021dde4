"""What lives as long as the process: built once, started and stopped with the app."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine
from typing import Any

from gateway.admission import Admission
from gateway.backends.session_store import SessionStore
from gateway.backends.verifier_pool import VerifierPool
from gateway.metrics import Metrics
from gateway.settings import GatewaySettings
from gateway.tasks import end


class AppState:
    """Verifiers, sessions, places and metrics."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.admission = Admission(settings.max_concurrent_requests)
        self.fleet = VerifierPool(settings.verifiers)
        name = f"{socket.gethostname()}:{settings.port}:{os.getpid()}"
        self.sessions = SessionStore(settings.redis_url, settings.session_ttl_s, name)
        self._tasks: set[asyncio.Task[Any]] = set()
        verifiers = self.fleet.verifiers.values()
        self.metrics.verifiers_up.set_function(lambda: sum(v.up for v in verifiers))
        self.metrics.redis_up.set_function(lambda: float(self.sessions.up))

    def start(self) -> None:
        self.fleet.start()
        self.spawn(self.sessions.watch())

    async def close(self) -> None:
        await end(self._tasks)
        await self.fleet.close()
        await self.sessions.close()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run `work` beside whatever is going on."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def unready(self) -> str | None:
        """Say why no requests should come here; None if they may."""
        if self.admission.draining:
            return "shutting down"
        states = [f"{v.address}: {v.reason}" for v in self.fleet.verifiers.values()]
        if not any(v.up for v in self.fleet.verifiers.values()):
            return f"no verifier is ready ({'; '.join(states)})"
        if not self.sessions.ever_up:
            return "Redis has not been reached yet"
        return None
