import pytest

from loadtests.common.client import Client
from loadtests.common.result import RequestFailed
from specserve.settings import StartError
from tests.support.fake_gateway import Behaviour, tokens_of
from tests.support.ports import free_port


async def test_chunks_tokens_and_report(url: str) -> None:
    seen: list[int] = []
    async with Client(url) as client:
        result = await client.chat(
            "question", max_tokens=8, speculation=True, on_tokens=seen.append
        )
    assert result.tokens == tuple(tokens_of("question", 8))
    assert [count for _, count in result.chunks] == [1, 3, 3, 1]
    assert seen == [1, 4, 7, 8]
    assert result.finish_reason == "length"
    assert result.report["drafted_rounds"] == 3
    assert 0 < (result.first_token or 0) <= result.chunks[-1][0] <= result.seconds


async def test_what_is_asked(url: str, behaviour: Behaviour) -> None:
    async with Client(url, "key") as client:
        await client.chat("a", max_tokens=3, speculation={"max_draft_tokens": 5}, seed=7)
    (body,) = behaviour.bodies
    assert (body["temperature"], body["seed"], body["ignore_eos"]) == (0.0, 7, False)
    assert body["speculation"] == {"max_draft_tokens": 5}
    assert body["return_token_ids"] is True


async def test_refusals_and_broken_streams(url: str) -> None:
    async with Client(url) as client:
        with pytest.raises(RequestFailed, match=r"400, This prompt is refused\."):
            await client.chat("refuse", max_tokens=3, speculation=True)
        with pytest.raises(RequestFailed, match="cut off"):
            await client.chat("cut off", max_tokens=3, speculation=True)


async def test_nothing_listens() -> None:
    async with Client(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(StartError, match="Nothing answers at http"):
            await client.served()
        with pytest.raises(RequestFailed, match="connection failed"):
            await client.chat("a", max_tokens=3, speculation=True)


async def test_another_server(url: str) -> None:
    async with Client(f"{url}/elsewhere") as client:
        with pytest.raises(StartError, match="404, There is nothing here"):
            await client.served()
