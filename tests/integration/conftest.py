"""The real services as processes: a tiny target and drafter, loopback gRPC, real Valkey."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from transformers import AutoModelForCausalLM, PreTrainedModel

from drafter_svc.formats.checkpoint import save_checkpoint
from drafter_svc.model.config import DrafterConfig
from drafter_svc.model.eagle import EagleDrafter
from speckernels.fingerprint import target_fingerprint
from tests.support.ports import free_port
from tests.support.process import spawn_module, stop
from tests.support.valkey import Valkey

START_SECONDS = 120


def wait_until(ready: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)


def grpc_serving(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@dataclass
class Cluster:
    """One verifier, one drafter, one gateway; each can be killed and started again."""

    folder: Path
    target: Path
    checkpoint: Path
    redis_url: str
    same_host: str = "on"
    verifier: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    drafter: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    gateway_port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"

    def start_drafter(self) -> None:
        self._start(
            "drafter", "drafter_svc", "--listen", self.drafter, "--checkpoint",
            str(self.checkpoint), "--target", str(self.target), "--dtype", "float32",
            "--metrics-port", "0", "--same-host", self.same_host,
        )  # fmt: skip

    def start_verifier(self, *flags: str) -> None:
        self._start(
            "verifier", "verifier_svc", "--listen", self.verifier, "--target", str(self.target),
            "--drafter", self.drafter, "--dtype", "float32", "--kv-memory", "64MiB",
            "--draft-length", "4", "--draft-deadline-ms", "2000", *flags,
        )  # fmt: skip

    def start_gateway(self) -> None:
        self._start(
            "gateway", "gateway", "--port", str(self.gateway_port), "--verifiers", self.verifier,
            "--redis-url", self.redis_url,
        )  # fmt: skip

    def wait(self) -> None:
        for name, address in (("drafter", self.drafter), ("verifier", self.verifier)):
            if name in self.processes:
                wait_until(lambda a=address: grpc_serving(a), f"{name} serving")  # type: ignore[misc]
        if "gateway" in self.processes:
            wait_until(self._gateway_ready, "gateway ready")

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> dict[str, int]:
        """Exit statuses after SIGTERM."""
        names = ("gateway", "verifier", "drafter")
        # Longer than the services take to drain by themselves, on a busy machine too.
        return {n: stop(self.processes.pop(n), 60) for n in names if n in self.processes}

    def logs(self) -> str:
        """The last lines of each process."""
        texts = ((path.name, path.read_text()) for path in sorted(self.folder.glob("*.log")))
        return "\n".join(f"{name}:\n{text[-2000:]}" for name, text in texts)

    def _gateway_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def _start(self, name: str, module: str, *arguments: str) -> None:
        log = self.folder / f"{name}.log"
        environment = {"OMP_NUM_THREADS": "1"}
        self.processes[name] = spawn_module(module, *arguments, log=log, env=environment)


@pytest.fixture(scope="session")
def tiny_reference(tiny_llama: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tiny_llama: Path, tiny_reference: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A drafter of random weights for the tiny target; some of its guesses are right."""
    target = tiny_reference.config
    config = DrafterConfig(
        hidden_size=target.hidden_size,
        target_hidden_size=target.hidden_size,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        vocab_size=target.vocab_size,
        draft_vocab_size=target.vocab_size,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        fc_norm=True,
        norm_output=True,
        norm_before_residual=False,
        aux_layers=(0, 2, 3),
        target_fingerprint=target_fingerprint(tiny_reference),
    )
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, EagleDrafter(config), torch.arange(target.vocab_size))
    return folder


@pytest.fixture(scope="module", params=["on", "off"], ids=["same host", "gRPC"])
def cluster(
    request: pytest.FixtureRequest,
    tiny_llama: Path,
    tiny_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    """All services, whose rounds travel by a Unix socket or by gRPC."""
    folder = tmp_path_factory.mktemp("cluster")
    server = Valkey(tmp_path_factory.mktemp("vk"))
    server.start()
    running = Cluster(folder, tiny_llama, tiny_checkpoint, server.url, same_host=request.param)
    try:
        running.start_drafter()
        running.start_verifier()
        running.start_gateway()
        running.wait()
        yield running
    finally:
        running.stop()
        server.stop()


@pytest.fixture
def verifier(tiny_llama: Path, tmp_path: Path) -> Iterator[Cluster]:
    """A verifier without drafter or gateway."""
    running = Cluster(tmp_path, tiny_llama, tmp_path, "")
    try:
        running.start_verifier()
        running.wait()
        yield running
    finally:
        running.stop()
