"""Long texts, cut out of short prompts."""

from __future__ import annotations

from collections.abc import Sequence

from loadtests.common.client import Client
from loadtests.common.prompts import Prompt


async def passages(client: Client, prompts: Sequence[Prompt], tokens: int, count: int) -> list[str]:
    """Cut `count` texts of about `tokens` tokens out of all turns of all prompts, end to end.

    Each begins at another place. Where the prompts are too short for one, they begin anew in it.

    Raises:
        StartError: the gateway does not tokenize.
    """
    text = " ".join(turn for prompt in prompts for turn in prompt.turns) + " "
    length = round(tokens * len(text) / len(await client.tokenize(text)))
    # Twice as much as is likely to be needed: passages differ in characters per token.
    endless = text * (2 + 2 * length // len(text))
    found = []
    for place in range(count):
        start = place * len(text) // count
        given = len(await client.tokenize(endless[start : start + length]))
        found.append(endless[start : start + round(length * tokens / given)])
    return found
