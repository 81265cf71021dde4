"""The stack's command, run in a folder of fake services with the real Valkey."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.support.ports import free_port
from tests.support.process import ROOT

# Stands for verifier and drafter: notes how it was started, serves gRPC health, drains on SIGTERM.
GRPC_SERVICE = """
import os, pathlib, signal, sys, threading
from concurrent.futures import ThreadPoolExecutor
import grpc
from grpc_health.v1 import health, health_pb2_grpc
from specwire.v1 import verifier_pb2 as pb
from specwire.v1.verifier_pb2_grpc import VerifierServiceServicer
from specwire.v1.verifier_pb2_grpc import add_VerifierServiceServicer_to_server
class Verifier(VerifierServiceServicer):
    def DescribeModel(self, request, context):
        kernels = os.environ.get("FAKE_KERNELS", "")
        model = pb.Model(name="Fake", dtype="bfloat16", device="cpu", kernels=kernels)
        yield pb.DescribeModelResponse(model=model)
        yield pb.DescribeModelResponse(file=pb.FileChunk(name="tokenizer.json", last=True))
if os.environ.get("BAD_SETTING") == __package__:
    print(f"{__package__}: --kv-memory: must be positive, -1 was given.", file=sys.stderr)
    sys.exit(2)
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
pathlib.Path(f"{__package__}.flags").write_text(repr(flags))
pathlib.Path(f"{__package__}.environment").write_text(repr(dict(os.environ)))
server = grpc.server(ThreadPoolExecutor(2))
health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
add_VerifierServiceServicer_to_server(Verifier(), server)
server.add_insecure_port(flags["--listen"])
server.start()
stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())
stopped.wait()
server.stop(0).wait()
"""
GATEWAY = """
import http.server, os, pathlib, signal, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
pathlib.Path("gateway.flags").write_text(repr(flags))
pathlib.Path("gateway.environment").write_text(repr(dict(os.environ)))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
http.server.HTTPServer((flags["--host"], int(flags["--port"])), Handler).serve_forever()
"""
PARTS = {"valkey-server", "drafter_svc", "verifier_svc", "gateway"}


class Stack:
    """A folder that the fake services shadow the real ones in, and the command run there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        for name, program in {
            "verifier_svc": GRPC_SERVICE,
            "drafter_svc": GRPC_SERVICE,
            "gateway": GATEWAY,
        }.items():
            (folder / name).mkdir()
            (folder / name / "__init__.py").touch()
            (folder / name / "__main__.py").write_text(program)
            shutil.copy(ROOT / name / "settings.py", folder / name)
        (folder / "target.gguf").touch()
        (folder / "checkpoint").mkdir()
        self.environment = {
            **os.environ,
            "HOLDCOURSE_PORT": str(self.port),
            "HOLDCOURSE_TARGET": "./target.gguf",
            "HOLDCOURSE_DRAFTER": "checkpoint",
            "HOLDCOURSE_CACHE": str(folder / "cache"),
            "HOLDCOURSE_DTYPE": "float32",
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def logs(self) -> Path:
        return self.folder / "cache" / f"run-{self.port}"

    def run(self, *flags: str) -> subprocess.CompletedProcess[str]:
        """The command, which is to end by itself."""
        return subprocess.run(
            [sys.executable, "-m", "deploy.local", *flags],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """The command, ready; killed at the end if it still runs."""
        with (self.folder / "output").open("w") as output:
            process = self.process = subprocess.Popen(
                [sys.executable, "-m", "deploy.local"],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=output,
            )
        try:
            self.until(lambda: "curl" in self.output)
            yield process
        finally:
            process.kill()
            process.wait()

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, self.output
            assert self.process is None or self.process.poll() is None, self.output
            time.sleep(0.02)

    def children(self) -> dict[str, psutil.Process]:
        """The running parts by the name of their module or program."""
        assert self.process is not None
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            found.update(dict.fromkeys(PARTS & {child.name(), *child.cmdline()}, child))
        return found

    def told(self, service: str, what: str) -> dict[str, str]:
        """The flags or the environment that a fake service was started with."""
        text = (self.folder / f"{service}.{what}").read_text()
        found: dict[str, str] = eval(text)
        return found
