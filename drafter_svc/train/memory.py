"""``python -m drafter_svc.train.memory``: peak memory of training, by length of the sequence.

For each length a fresh process loads the target and makes two updates of a new drafter, each from
one document of that length, at the last stage of the chain steps. On a CPU memory is the process's
resident memory, libraries included (on Linux); on CUDA it is what torch has allocated.
"""

import random
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers import HfArgumentParser

from drafter_svc.train.data.documents import Document
from drafter_svc.train.run.setup import Corpus
from drafter_svc.train.settings import TrainSettings
from drafter_svc.train.sweep.arms import TrainingArm, parse_arms
from drafter_svc.train.sweep.shared_target import SharedTargetSweep, SweepContext
from drafter_svc.train.target.local_source import LocalSource
from drafter_svc.train.target.target import load_target

_MIB = 2**20
_UPDATES = 2


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """What to measure; every field is a command-line flag."""

    target: str = field(metadata={"help": "Hugging Face id, folder or .gguf file of the target"})
    lengths: list[int] = field(
        default_factory=lambda: [1024, 2048, 4096], metadata={"help": "of sequences, in tokens"}
    )
    device: str = field(default="cpu", metadata={"help": "cpu, cuda, cuda:1"})
    changes: str = field(
        default="",
        metadata={"help": "settings of training that differ: 'setting=value, setting=value'"},
    )

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 3:
            raise ValueError(f"lengths must be numbers from 3 on, got {self.lengths}")

    @property
    def arm(self) -> TrainingArm:
        base = TrainSettings(
            target=self.target, data=["none"], out="none", device=self.device, warm_up=0.0
        )
        (arm,) = parse_arms([f"measured: {self.changes}"], base)
        return arm


def measure_memory(settings: MemorySettings, length: int) -> tuple[int, int]:
    """Bytes in use before the first update, and at the peak of both."""
    arm, device = settings.arm, torch.device(settings.device)
    target = load_target(settings.target, settings.device)
    ids = random.Random(0).choices(range(target.config.vocab_size), k=length)
    document = Document(ids, [False] + [True] * (length - 1))
    corpus = Corpus([document] * _UPDATES, [document], "")
    base = replace(arm.settings, batch_tokens=length)
    steps = [max(arm.settings.chain_steps)]
    arm = replace(arm, settings=replace(base, chain_steps=steps))
    school = SweepContext(target, LocalSource(target), corpus, tokens=_UPDATES * length)
    group = SharedTargetSweep([arm], 0, base, school)
    before = _peak(device)
    updates = sum(1 for _ in group.train(lambda _: None))
    assert updates == _UPDATES
    return before, _peak(device, reset=False)


def _peak(device: torch.device, *, reset: bool = True) -> int:
    """Largest memory since the last reset; after one, that of now."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    # Linux: the high-water mark of resident memory, and how to reset it.
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> int:
    """Run the command. Returns the exit code: 2 for unusable input."""
    parser = HfArgumentParser(MemorySettings, description=__doc__)
    try:
        (settings,) = parser.parse_args_into_dataclasses()
        _ = settings.arm
        print("tokens  before an update, MiB  peak, MiB  difference")
        for length in settings.lengths:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                before, peak = process.submit(measure_memory, settings, length).result()
            row = (before / _MIB, peak / _MIB, (peak - before) / _MIB)
            print(f"{length:6}  {row[0]:21.0f}  {row[1]:9.0f}  {row[2]:10.0f}", flush=True)
    except (OSError, ValueError, RuntimeError) as error:
        died = isinstance(error, BrokenProcessPool)
        sentence = "the process was ended, memory may not suffice" if died else error
        print(f"drafter_svc.train.memory: {sentence}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
