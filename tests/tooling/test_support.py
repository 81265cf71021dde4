"""The shared fixtures hold what they promise."""

from pathlib import Path

import redis.asyncio

from tests.support.tiny_llama import END, START, VOCAB_SIZE, write_tiny_llama
from tests.support.valkey import Valkey


async def test_valkey_answers_and_starts_empty(valkey: Valkey) -> None:
    async with redis.asyncio.from_url(valkey.url) as client:
        assert await client.dbsize() == 0
        await client.set("key", "value")
        valkey.flush()
        assert await client.get("key") is None


def test_tiny_llama_is_seeded(tiny_llama: Path, tmp_path: Path) -> None:
    same = write_tiny_llama(tmp_path / "same")
    other = write_tiny_llama(tmp_path / "other", seed=1)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tiny_llama, same, other)]
    assert weights[0] == weights[1] != weights[2]


def test_tiny_llama_generates_and_its_tokenizer_round_trips(tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    text = "Hello, {world}! ~ 0"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_tokens_to_ids([START, END, " ", "~"]) == [0, 1, 2, VOCAB_SIZE - 1]

    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    assert tokenizer.decode(prompt["input_ids"][0]) == f"{START}user Hi{END}{START}assistant "
    output = model.generate(**prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert output.shape[1] == prompt["input_ids"].shape[1] + 8
