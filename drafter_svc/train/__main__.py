"""``python -m drafter_svc.train``: train a drafter for a target."""

import sys
from contextlib import ExitStack

import torch
from transformers import HfArgumentParser

from drafter_svc.train.data.documents import read_documents
from drafter_svc.train.run.process_group import ProcessGroup
from drafter_svc.train.run.setup import make_corpus
from drafter_svc.train.run.signals import StopOnSignal, make_source
from drafter_svc.train.run.throughput import matrix_rate
from drafter_svc.train.run.trainer import Interrupted, Trainer
from drafter_svc.train.settings import TrainSettings
from drafter_svc.train.target.target import Target, load_target


def train(settings: TrainSettings) -> str:
    """Train as ``settings`` say. Returns what to print at the end.

    Raises ``ValueError``, ``OSError`` and ``FloatingPointError`` with one sentence, and
    ``Interrupted``.
    """
    with ExitStack() as stack:
        world = ProcessGroup.join(settings.device)
        stack.callback(world.leave)
        target = load_target(settings.target, settings.device, layers=not settings.verifiers)
        documents = read_documents(settings.data, target.tokenizer, settings.max_length)
        corpus = make_corpus(settings, documents)
        source = make_source(settings, target, stack)
        trainer = Trainer(settings, target, source, corpus, world, StopOnSignal())
        machine = _matrix_rate(settings, target) if world.leads else 0.0
        measured = trainer.run()
    if measured is None:
        return ""
    agreement = " ".join(f"{value:.3f}" for value in measured.top1)
    return (
        f"held-out top-1 per step: {agreement}; acceptance length "
        f"{measured.acceptance_length:.3f}; t_d {measured.draft_temperature}\n"
        f"{trainer.throughput.describe(machine)}"
    )


def _matrix_rate(settings: TrainSettings, target: Target) -> float:
    """FLOP/s in shapes of an update's largest products: the MLP's and the output layer's."""
    rows, width = settings.batch_tokens, target.config.hidden_size
    outs = (target.config.intermediate_size, settings.draft_vocab)
    return matrix_rate([(rows, width, out) for out in outs], torch.device(settings.device))


def main() -> int:
    """Run the command. Returns the exit code: 2 for unusable input, 130 when it was stopped."""
    parser = HfArgumentParser(TrainSettings, description=__doc__)
    try:
        (settings,) = parser.parse_args_into_dataclasses()
        print(train(settings))
    except Interrupted as interrupted:
        print(f"drafter_svc.train: {interrupted}", file=sys.stderr)
        return 130
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"drafter_svc.train: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
