"""Long texts, cut out of short prompts."""

from __future__ import annotations

from collections.abc import Sequence

from loadtests.client import Client
from loadtests.prompts import Prompt


async def passages(client: Client, prompts: Sequence[Prompt], tokens: int, count: int) -> list[str]:
    """Cut `count` texts of about `tokens` tokens out of all turns of all prompts, end to end.

    Each begins at another place. Where the prompts are too short for one, they begin anew in it.

    Raises:
        StartError: the gateway does not tokenize.
    """
    text = " ".join(turn for prompt in prompts for turn in prompt.turns) + " "
    length = round(tokens * len(text) / len(await client.tokenize(text)))
    endless = text * (2 + length // len(text))
    starts = (place * len(text) // count for place in range(count))
    return [endless[start : start + length] for start in starts]
