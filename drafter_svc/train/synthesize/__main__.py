"""``python -m drafter_svc.train.synthesize``: let the target write its training conversations."""

import asyncio
import logging
import sys

from transformers import HfArgumentParser

from drafter_svc.train.synthesize.jsonl_output import table
from drafter_svc.train.synthesize.pipeline import synthesize
from drafter_svc.train.synthesize.settings import SynthesizeSettings


def main() -> int:
    """Run the command. Returns the exit code: 2 for unusable input, 130 when interrupted."""
    logging.basicConfig(format="%(message)s")
    parser = HfArgumentParser(SynthesizeSettings, description=__doc__)
    try:
        (settings,) = parser.parse_args_into_dataclasses()
        meta = asyncio.run(synthesize(settings))
    except (OSError, ValueError) as error:
        print(f"drafter_svc.train.synthesize: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(table(meta))
    return 0


if __name__ == "__main__":
    sys.exit(main())
