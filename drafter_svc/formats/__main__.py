"""Commands on checkpoints: `python -m drafter_svc.formats inspect|convert|validate`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from drafter_svc.formats.declared import CONVENTIONS, UserOverrides
from drafter_svc.formats.inspect import describe
from drafter_svc.formats.reader import read_raw_checkpoint
from drafter_svc.formats.writer import write_specforge, write_speculators
from drafter_svc.model.config import CheckpointError

_DOES_NOT_FIT, _BAD_INPUT = 1, 2


def main(arguments: Sequence[str]) -> int:
    """Run one command. Returns 0, 1 where a drafter does not fit its target, 2 for bad input."""
    options = _parser().parse_args(arguments)
    given = UserOverrides(
        options.aux_layers,
        options.aux_convention,
        options.norm_before_residual,
        draft_temperature=options.draft_temperature,
    )
    try:
        return int(options.run(options, given))
    except (CheckpointError, ValueError, OSError) as error:
        sentence = " ".join(str(error).split()).rstrip(".")
        print(f"{options.path}: {sentence}.", file=sys.stderr)
        return _BAD_INPUT


def _inspect(options: argparse.Namespace, given: UserOverrides) -> int:
    rows = describe(read_raw_checkpoint(options.path), given)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0


def _convert(options: argparse.Namespace, given: UserOverrides) -> int:
    found = read_raw_checkpoint(options.path)
    if options.target is not None:
        from drafter_svc.train.target.target import load_target
        from drafter_svc.train.validate import compare

        target = load_target(options.target)
        given = replace(given, target_fingerprint=target.fingerprint)
    built = found.build(given)
    _print_notes(options.path, built.notes)
    if options.target is not None:
        _, reason = compare(built.config, target, found.facts.target_fingerprint)
        if reason is not None:
            print(f"{options.path}: it does not fit {options.target}: {reason}.", file=sys.stderr)
            return _DOES_NOT_FIT
    target_ids = torch.arange(len(built.d2t)) + built.d2t
    if options.format == "specforge":
        write_specforge(options.out, built.module, target_ids)
    else:
        verifier = options.verifier or options.target
        if verifier is None:
            raise ValueError("speculators names the target in config.json: pass --verifier")
        write_speculators(options.out, built.module, target_ids, verifier)
    print(f"{options.out}: {options.format}, {built.config.draft_vocab_size} draft tokens")
    return 0


def _validate(options: argparse.Namespace, given: UserOverrides) -> int:
    # Only this command waits for what it takes to run a target.
    from drafter_svc.train.validate import validate

    fit = validate(options.path, options.target, given, options.prompts, options.tokens)
    _print_notes(options.path, fit.notes)
    print(*fit.lines(), sep="\n")
    return 0 if fit.reason is None else _DOES_NOT_FIT


def _print_notes(path: str, notes: Sequence[str]) -> None:
    for sentence in notes:
        print(f"{path}: {sentence}.", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m drafter_svc.formats", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    inspect = commands.add_parser("inspect", help="print what a checkpoint is")
    inspect.set_defaults(run=_inspect)
    convert = commands.add_parser("convert", help="write a checkpoint in another format")
    convert.set_defaults(run=_convert)
    probe = commands.add_parser("validate", help="prove that a checkpoint fits its target")
    probe.set_defaults(run=_validate)
    for command in (inspect, convert, probe):
        command.add_argument("path", metavar="PATH", help="folder or Hugging Face id")
        _add_given(command)
    convert.add_argument("out", metavar="OUT", help="folder to write")
    convert.add_argument(
        "--format", choices=("specforge", "speculators"), default="specforge",
        help="layout to write (default: %(default)s)",
    )  # fmt: skip
    convert.add_argument(
        "--target",
        help="folder, .gguf file or Hugging Face id of the target, to compare with and name it by",
    )
    convert.add_argument(
        "--verifier", help="what speculators loads the target from (default: that of --target)"
    )
    probe.add_argument(
        "--target", required=True, help="folder, .gguf file or Hugging Face id of the target"
    )
    probe.add_argument(
        "--prompts", help="file with one prompt a line (default: eight that are built in)"
    )
    probe.add_argument(
        "--tokens", type=int, default=96, help="tokens that the target answers each prompt with"
    )
    return parser


def _add_given(command: argparse.ArgumentParser) -> None:
    """What a checkpoint of another project may leave open."""
    command.add_argument(
        "--aux-layers", type=_layers, metavar="I,J,K", help="captured layers, where none are named"
    )
    command.add_argument(
        "--aux-convention", choices=CONVENTIONS, help="what aux layer numbers mean"
    )
    command.add_argument(
        "--norm-before-residual", type=_bool, metavar="true|false",
        help="whether the normed state enters the residual stream, where it is not said",
    )  # fmt: skip
    command.add_argument(
        "--draft-temperature", type=float,
        help="t_d, which divides draft logits (default: the checkpoint's, else 1)",
    )  # fmt: skip


def _layers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 2,15,27") from None


def _bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text == "true"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
