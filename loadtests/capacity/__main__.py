"""`python -m loadtests.capacity`: what drafting elsewhere is worth to a saturated GPU."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median

import torch
from pydantic import field_validator
from rich.console import Console
from rich.progress import track

from drafter_svc.build import Drafter, load_drafter
from drafter_svc.service.in_process import LocalDrafter
from drafter_svc.settings import DrafterSettings
from loadtests.capacity.emulated_drafter import Delays
from loadtests.capacity.engine_run import EngineRun, Port, Window
from loadtests.capacity.kernel_profiler import KernelProfile
from loadtests.capacity.random_acceptance import RandomAcceptance
from loadtests.capacity.random_models import config_of, random_target, save_random_drafter
from loadtests.capacity.recorded import check_recorded
from loadtests.capacity.report import print_summary, summarize
from loadtests.common.command import INTERRUPTED, UntilInterrupted, run
from loadtests.common.report_file import ReportFile
from loadtests.common.settings import ReportSettings
from loadtests.common.tables import console
from speckernels import device
from specserve import logs
from specserve.settings import Compile, Device, StartError, setting
from specserve.version import version
from verifier_svc.model.target import Target
from verifier_svc.settings import VerifierSettings
from verifier_svc.speculation.grpc_client import DrafterClient

PROGRAM = "loadtests.capacity"
PLAIN, LOCAL, EMULATED = "plain", "co-located", "remote (emulated)"
# Of the drafter that only stands for one.
_WIDTH = 64


class CapacitySettings(ReportSettings):
    """Measures tokens per second with the drafter on the target's device, and with it elsewhere.

    Weights are random and prompts are, so drafts are accepted by a coin. Elsewhere is emulated: a
    process that answers, by gRPC, after what the drafter on this device was measured to take.
    """

    shape: str = setting("llama-3.1-8b", "Of the target: a known name, or a folder with a config.")
    chance: float = setting(0.7, "Of each draft token to be accepted.", ge=0, le=1)
    draft_length: int = setting(3, "Of all drafts.", ge=1, le=16)
    streams: str = setting("1,16,64", "Streams at once, each number in turn.")
    prompt: int = setting(128, "Tokens of each prompt.", ge=1)
    tokens: int = setting(256, "Tokens of each output.", ge=32)
    repeats: int = setting(3, "Times that everything is measured.", ge=1)
    kv_memory: str = setting("4GiB", "KV cache of each engine; there are three.")
    device: Device = setting("auto", "auto, cpu, cuda or cuda:N.")
    compile: Compile = setting("auto", "CPU kernels of ours; torch cannot tell what they take.")

    @field_validator("streams")
    @classmethod
    def _check_streams(cls, streams: str) -> str:
        if not all(n.isdecimal() and 1 <= int(n) <= 1024 for n in streams.split(",")):
            raise ValueError("must be numbers from 1 to 1024 with commas between them")
        return streams

    @property
    def levels(self) -> list[int]:
        """Streams at once, in rising order."""
        return sorted({int(n) for n in self.streams.split(",")})


async def main() -> int:
    """Run it; returns 130 if it was interrupted.

    Raises:
        StartError: see `check_recorded`; figures that were measured are there all the same.
    """
    settings = CapacitySettings.read(PROGRAM)
    logs.configure("capacity", "warning")
    config = config_of(settings.shape)
    waves: list[Window] = []
    async with AsyncExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory()))
        config.save_pretrained(folder)
        verifier = _verifier(settings, folder)
        device.prepare(verifier.torch_device, verifier.compile, verifier.cpu_level)
        device.use(verifier.torch_device)
        target = random_target(config, settings.shape, verifier.torch_dtype, verifier.torch_device)

        async def start(name: str, port: Port | None) -> EngineRun:
            stack = EngineRun(name, verifier, target, port, RandomAcceptance(settings.chance))
            ends.push_async_callback(stack.close)
            await stack.start()
            return stack

        drafter = _drafter(settings, folder, target)
        local = await start(LOCAL, LocalDrafter(drafter, target.shape))
        check_recorded(target, drafter)
        delays = await _measure(settings, local)
        save_random_drafter(folder / "stand-in", target, width=_WIDTH)
        address = await ends.enter_async_context(_emulated(folder, delays))
        remote = await start(EMULATED, DrafterClient(address, target.shape))
        stacks = [await start(PLAIN, None), local, remote]
        document = ReportFile(settings, {"shape": settings.shape, "device": _device(target)})
        document.tell(delays={"batches": delays.batches, "row": delays.row})
        with UntilInterrupted() as block:
            async for wave in _waves(settings, stacks):
                waves.append(wave)
                document.add(wave)
    summary = summarize(waves, (PLAIN, LOCAL, EMULATED))
    document.finish(summary, complete=not block.interrupted)
    print_summary(console(), summary, _device(target))
    check_recorded(target, drafter)
    return INTERRUPTED if block.interrupted else 0


def _verifier(settings: CapacitySettings, folder: Path) -> VerifierSettings:
    given = {
        "target": folder,
        "device": settings.device,
        "draft-length": settings.draft_length,
        "max-draft-tokens": settings.draft_length,
        "max-model-len": settings.prompt + settings.tokens,
        "max-sequences": settings.levels[-1],
        "kv-memory": settings.kv_memory,
        "draft-deadline-ms": 10_000,
        "prefix-cache": "off",
        "compile": settings.compile,
    }
    flags = [f"--{name}={value}" for name, value in given.items()]
    return VerifierSettings.read(PROGRAM, flags, {})


def _drafter(settings: CapacitySettings, folder: Path, target: Target) -> Drafter:
    """A drafter of the target's width in this process, on the target's device."""
    save_random_drafter(folder / "drafter", target)
    flags = [
        f"--checkpoint={folder / 'drafter'}",
        f"--target={folder}",
        f"--device={target.device}",
        f"--max-draft-tokens={settings.draft_length}",
        f"--compile={settings.compile}",
        "--lookup=off",
    ]
    return load_drafter(DrafterSettings.read(PROGRAM, flags, {}), version())


async def _measure(settings: CapacitySettings, local: EngineRun) -> Delays:
    """What the drafter takes on a device that does nothing else meanwhile.

    Elsewhere it works for half of the streams at a time.
    """
    sizes = sorted({size for n in settings.levels for size in (n, max(1, n // 2))})
    batches: dict[int, float] = {}
    for size in track(sizes, "Measuring the drafter", console=Console(stderr=True)):
        for repeat in range(2):  # the first warms up
            wave = await local.run(size, settings.prompt, settings.tokens, repeat)
        batches[round(wave.batch)] = wave.draft
    return Delays(batches, median(local.rows) if local.rows else 0.0)


@asynccontextmanager
async def _emulated(folder: Path, delays: Delays) -> AsyncIterator[str]:
    """The address of a drafter on no device of ours; its process ends with the block.

    Raises:
        StartError: it does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "127.0.0.1", free.getsockname()[1]
    listen = f"{address[0]}:{address[1]}"
    command = (
        *(sys.executable, "-m", "loadtests.capacity.emulated_drafter", "--listen", listen),
        *("--checkpoint", str(folder / "stand-in"), "--target", str(folder), "--device", "cpu"),
        *("--dtype", "float32", "--lookup", "off", "--metrics-port", "0", "--threads", "1"),
        *("--delays", str(delays)),
    )
    process = await asyncio.create_subprocess_exec(*command)
    try:
        while not _listens(address):
            if process.returncode is not None:
                raise StartError("The drafter that stands for a remote one does not start.")
            await asyncio.sleep(0.1)
        yield listen
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def _listens(address: tuple[str, int]) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address):
        return True
    return False


async def _waves(settings: CapacitySettings, stacks: Sequence[EngineRun]) -> AsyncIterator[Window]:
    """Every number of streams on every stack, in turns, after a warm-up of each."""
    KernelProfile.prepare()
    places = [(n, repeat) for n in settings.levels for repeat in range(-1, settings.repeats)]
    for streams, repeat in track(places, "Streams", console=Console(stderr=True)):
        for stack in stacks[:: 1 if repeat % 2 else -1]:
            wave = await stack.run(streams, settings.prompt, settings.tokens, repeat)
            if repeat >= 0:
                yield wave
        (local,) = (stack for stack in stacks if stack.name == LOCAL)
        if repeat == settings.repeats - 1 and (local.on_gpu or settings.compile == "off"):
            # One more with the drafter here, whose kernels are recorded.
            size = settings.prompt, settings.tokens
            yield await local.run(streams, *size, settings.repeats, record=True)


def _device(target: Target) -> str:
    gpu = target.device.type == "cuda"
    return torch.cuda.get_device_name(target.device) if gpu else str(target.device)


if __name__ == "__main__":
    run(PROGRAM, main)
