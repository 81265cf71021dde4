"""Two turns of a conversation, and what the second one costs where nothing is cached."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.common.client import Client
from loadtests.common.result import Result

FOLLOW_UP = "Now say that again in other words."


@dataclass(frozen=True, slots=True)
class Conversation:
    """Two turns, and the second one again with nothing cached."""

    speculation: bool
    pair: int
    first: Result
    second: Result
    cold: Result


async def converse(
    client: Client, text: str, pair: int, *, max_tokens: int, speculation: bool
) -> Conversation:
    """Ask `text`, then the follow-up, also as a cold request; which of the two is first varies.

    Raises:
        RequestFailed: one of them failed.
    """
    salt = secrets.token_hex(8)

    async def ask(text: str, history: Sequence[dict[str, str]] = (), salt: str = "") -> Result:
        return await client.chat(
            text,
            history=history,
            max_tokens=max_tokens,
            speculation=speculation,
            ignore_eos=True,
            cache_salt=salt or None,
        )

    first = await ask(text, salt=salt)
    asked, answered = {"role": "user", "content": text}, {"role": "assistant"}
    history = (asked, answered | {"content": first.text})
    if pair % 2:
        cold = await ask(FOLLOW_UP, history)
        second = await ask(FOLLOW_UP, history, salt)
    else:
        second = await ask(FOLLOW_UP, history, salt)
        cold = await ask(FOLLOW_UP, history)
    return Conversation(speculation, pair, first, second, cold)
