"""``python -m drafter_svc.train``: train a drafter for a target."""

import sys

from transformers import HfArgumentParser

from drafter_svc.train.loop import train
from drafter_svc.train.settings import TrainSettings
from drafter_svc.train.target import load_target


def main() -> int:
    """Run the command. Returns the exit code: 2 for unusable input."""
    parser = HfArgumentParser(TrainSettings, description=__doc__)
    try:
        (settings,) = parser.parse_args_into_dataclasses()
        measured = train(settings, load_target(settings.target))
    except (OSError, ValueError) as error:
        print(f"drafter_svc.train: {error}", file=sys.stderr)
        return 2
    agreement = " ".join(f"{value:.3f}" for value in measured.top1)
    print(f"held-out top-1 per step: {agreement}; t_d {measured.draft_temperature}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
