"""`python -m loadtests.gpu_check`: every path of a GPU, tried and timed in eight minutes."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from loadtests.gpu_check import report
from loadtests.gpu_check.findings import read
from loadtests.gpu_check.options import PROGRAM, OptionError, Options
from loadtests.gpu_check.parts import PARTS
from loadtests.gpu_check.runner import Runner
from loadtests.gpu_check.screen import Screen
from loadtests.gpu_check.wheels import unpack
from loadtests.gpu_check.worker import LOG

INTERRUPTED = 130


def main() -> int:
    """Run it; returns 1 if a part failed or was skipped, 130 after an interruption."""
    options = Options.read()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / LOG).write_text("", encoding="utf-8")
    # Of children, too: there is no compiler to be counted on, and no kernel of a CPU is wanted.
    os.environ["HOLDCOURSE_COMPILE"] = "off"
    with tempfile.TemporaryDirectory() as folder:
        for name in unpack(options.wheels, Path(folder)):
            print(f"      {name} is for another interpreter or system: left out")
        runner = Runner(options, Screen(), options.chosen)
        interrupted = False
        try:
            runner.run()
        except KeyboardInterrupt:
            interrupted = True
    text = report.write(runner.outcomes, _remark(options), options.out)
    print(f"\n{text}\nEverything is in {options.out}.")
    if interrupted:
        return INTERRUPTED
    return 0 if runner.passed else 1


def _remark(options: Options) -> str:
    """What was run where, and what was not judged."""
    facts = read(options.out / f"{PARTS[0].name}.json")[1]
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    said = f"{when}, {facts.get('device', 'a device that was not asked')}: {facts.get('packages')}."
    if facts.get("on_gpu") is False:
        said += " A CPU: work was called and not recorded, and no time has a bar."
    return said


if __name__ == "__main__":
    try:
        status = main()
    except OptionError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)
