"""Asks the services whether they would take their settings, before any of them starts."""

import asyncio
import difflib
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Iterable, Sequence

from deploy.local.component import Component
from specserve.settings import ENV_PREFIX, StartError


async def check(parts: Sequence[Component]) -> set[str]:
    """The environment variables that these parts read.

    Raises:
        StartError: one of them would refuse to start; the sentence is its own.
    """
    return set().union(*await asyncio.gather(*map(_ask, parts)))


def misspelled(environment: Iterable[str], known: Iterable[str]) -> list[str]:
    """A sentence on each variable of ours that nobody reads."""
    known = sorted(known)
    ours = {name for name in environment if name.startswith(ENV_PREFIX)}
    return [_unknown(name, known) for name in sorted(ours.difference(known))]


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    meant = f": is {near[0]} meant?" if near else "."
    return f"{name} is no setting of the stack and does nothing{meant}"


async def _ask(part: Component) -> set[str]:
    process = await asyncio.create_subprocess_exec(
        *part.check, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=dict(part.environment)
    )
    variables, refusal = await process.communicate()
    if process.returncode:
        sentence = refusal.decode(errors="replace").strip() or f"The {part.name} cannot start."
        raise StartError(sentence.splitlines()[-1])
    return set(variables.decode().split())
