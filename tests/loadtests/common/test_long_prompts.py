from loadtests.common.client import Client
from loadtests.common.long_prompts import passages
from loadtests.common.prompts import Prompt
from tests.support.fake_gateway import Behaviour


async def test_long_texts_out_of_short_prompts(url: str, behaviour: Behaviour) -> None:
    behaviour.tokenized = lambda text: [0] * (len(text) // 2)
    prompts = [Prompt("1", ("abcde", "fghij")), Prompt("2", ("klmno",))]
    async with Client(url) as client:
        texts = await passages(client, prompts, 20, 3)
    assert [len(text) // 2 for text in texts] == [20, 20, 20]
    assert len(set(texts)) == 3
    # Where a passage has other words than the whole, it is cut anew.
    behaviour.tokenized = lambda text: [0] * (len(text) // (2 if len(text) == 18 else 4))
    async with Client(url) as client:
        (text,) = await passages(client, prompts, 18, 1)
    assert len(text) // 4 == 18
    assert texts[0].startswith("abcde fghij klmno abcde")
    assert texts[1].startswith("fghij klmno abcde")
