"""`python -m deploy.local`: fetches the model, starts every service, stops them on Ctrl-C."""

import asyncio
import errno
import os
import signal
import sys
from functools import partial
from pathlib import Path

from deploy.local import default_model, preflight, run_dir
from deploy.local.served_summary import advice, describe
from deploy.local.settings import StackSettings
from deploy.local.stack import Stack
from deploy.local.status_table import StatusTable
from deploy.local.supervisor import PartFailedError, Supervisor
from specserve.server import check_bindable
from specserve.settings import StartError

PROGRAM = "holdcourse"
NOT_WANTED = "No drafter is started: nothing is drafted."
NOT_FITTING = (
    f"Nothing is drafted: the shipped drafter fits {default_model.SMOLLM2.name} as it is fetched, "
    "and no other target. HOLDCOURSE_DRAFTER names one for this target."
)
BODY = (
    '{"model": "default", "messages": [{"role": "user", "content": "Name three rivers."}], '
    '"max_tokens": 100}'
)


async def serve(settings: StackSettings, screen: StatusTable) -> int:
    """Runs the stack until a signal or a failed start; returns the exit status.

    Raises:
        StartError: a setting, the port or the model stands in the way.
    """
    stopping, hurry, task = asyncio.Event(), asyncio.Event(), asyncio.current_task()

    def stop() -> None:
        if stopping.is_set():
            hurry.set()
            return
        stopping.set()
        screen.settle()
        screen.say(
            "Stopping; what is being generated may finish within "
            f"{settings.drain_grace_s:g} s. Once more stops at once."
        )
        assert task is not None
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    try:
        await _run(settings, screen, hurry)
    except asyncio.CancelledError:
        if not stopping.is_set():
            raise
    except PartFailedError as failure:
        if not stopping.is_set():
            return _explain(failure)
    return 0


async def _run(settings: StackSettings, screen: StatusTable, hurry: asyncio.Event) -> None:
    _check_port(settings)
    with run_dir.run_folder(settings.cache_folder, settings.port) as folder:
        target = settings.target or str(default_model.SMOLLM2.path(settings.cache_folder))
        checkpoint = await asyncio.to_thread(lambda: settings.checkpoint)
        known = await preflight.check(Stack(settings, target, checkpoint, folder).services)
        for sentence in preflight.misspelled(os.environ, known | settings.variables()):
            screen.warn(sentence)
        if checkpoint is None and "HOLDCOURSE_VERIFIER_DRAFTER" not in os.environ:
            screen.say(NOT_WANTED if settings.drafter else NOT_FITTING)
        if not settings.target:
            await _fetch(settings, screen)
        stack = Stack(settings, target, checkpoint, folder)  # of ports that are free by now
        supervisor = Supervisor(stack.parts, screen, hurry)
        await supervisor.run(on_ready=partial(_announce, stack, folder, screen))


def _check_port(settings: StackSettings) -> None:
    try:
        check_bindable(f"{settings.host}:{settings.port}")
    except StartError as error:
        taken = os.strerror(errno.EADDRINUSE) in str(error)
        advice = " Set HOLDCOURSE_PORT to another." if taken else ""
        raise StartError(f"{error}{advice}") from None


async def _fetch(settings: StackSettings, screen: StatusTable) -> None:
    progress = partial(screen.progress, f"Fetching {default_model.SMOLLM2.name}")
    await default_model.fetch(default_model.SMOLLM2, settings.cache_folder, progress)


async def _announce(stack: Stack, folder: Path, screen: StatusTable) -> None:
    url = stack.url
    if (served := await stack.model()) is not None:
        screen.say(f"\n{describe(served)}")
        if (faster := advice(served)) is not None:
            screen.warn(faster)
    key = ' -H "Authorization: Bearer ${HOLDCOURSE_API_KEYS%%,*}"'
    authorization = key if os.environ.get("HOLDCOURSE_API_KEYS") else ""
    screen.say(f"\nHoldcourse is ready at {url}; {url}/docs describes its API.")
    screen.say(f"Logs are in {folder}. Ctrl-C stops it. Try:\n")
    screen.say(
        f"curl -s {url}/v1/chat/completions -H 'Content-Type: application/json'{authorization} "
        f"-d '{BODY}'\n"
    )


def _explain(failure: PartFailedError) -> int:
    refused = failure.status == 2  # a setting, which the part's last line names
    print(f"{PROGRAM}: {failure}", file=sys.stderr)
    for line in failure.part.last_lines(1 if refused else 15):
        print(f"    {line}", file=sys.stderr)
    if not refused:
        print(f"The whole log is {failure.part.log}.", file=sys.stderr)
    return 2 if refused else 1


def main() -> int:
    """Returns the exit status: 0 after a stop that was asked for, 2 where a setting is wrong."""
    try:
        return asyncio.run(serve(StackSettings.read(PROGRAM), StatusTable()))
    except StartError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
