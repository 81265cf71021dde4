"""How a conversation is written, the target's words scripted, and the chat template's two sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from drafter_svc.train.synthesize.chat_template import Chat
from drafter_svc.train.synthesize.prompt_sources import Prompt
from drafter_svc.train.synthesize.settings import SynthesizeSettings
from drafter_svc.train.synthesize.writer import Turn, Wish, Writer, temperature_of
from specserve.model_source import ModelSource
from tests.support.tiny_llama import CHAT_TEMPLATE
from verifier_svc.model.loading.loader import load_tokenizer_files

END = 1


@pytest.fixture(scope="session")
def files(tiny_llama: Path) -> dict[str, bytes]:
    return load_tokenizer_files(ModelSource.parse(str(tiny_llama)), trust_remote_code=False)


@pytest.fixture
def chat(files: dict[str, bytes]) -> Chat:
    return Chat(files, "tiny", [END])


def with_template(files: dict[str, bytes], template: str) -> Chat:
    return Chat({**files, "chat_template.jinja": template.encode()}, "tiny", [END])


def ids(chat: Chat, text: str) -> list[int]:
    found: list[int] = chat._tokenizer(text, add_special_tokens=False).input_ids
    return found


def test_both_sides_of_the_template_are_continued(chat: Chat) -> None:
    before = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    said = "<|im_start|>user Hi<|im_end|><|im_start|>assistant Yes<|im_end|>"
    assert chat.user_prompt([]) == ids(chat, "<|im_start|>user")
    assert chat.user_prompt(before) == ids(chat, said + "<|im_start|>user")
    assert chat.answer_prompt(before[:1]) == ids(
        chat, "<|im_start|>user Hi<|im_end|><|im_start|>assistant "
    )
    assert chat.check_user_turns(1) == chat.check_user_turns(3) == {END}


def test_a_turns_text_is_without_its_end_and_has_no_other_special_token(chat: Chat) -> None:
    assert chat.text([*ids(chat, " Hello you "), END]) == "Hello you"
    assert chat.text(ids(chat, "cut of")) == "cut of"
    assert chat.text([*ids(chat, "a"), 0, *ids(chat, "b"), END]) is None
    assert chat.text([END]) == chat.text([]) == ""


@pytest.mark.parametrize(
    ("template", "turns", "sentence"),
    [
        ("{{ bos_token }}{{ messages[0]['role'] }}", 1, "has no user turn"),
        ("{% for m in messages %}[{{ m['content'] }}]{% endfor %}", 1, "with no special token"),
        (CHAT_TEMPLATE.replace("in messages", "in messages[-1:]"), 2, "rewrites earlier turns"),
        ("{{ raise_exception('never') }}", 1, "refuses the conversation: never"),
    ],
)
def test_templates_that_cannot_be_continued_are_refused(
    files: dict[str, bytes], template: str, turns: int, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        with_template(files, template).check_user_turns(turns)


def test_a_target_without_template_is_for_documents_only(files: dict[str, bytes]) -> None:
    bare = {name: data for name, data in files.items() if name != "chat_template.jinja"}
    with pytest.raises(ValueError, match="has no chat template and can write no conversations"):
        Chat(bare, "tiny", [END])


class Scripted:
    """Writes the given texts one after the other; one that ends in "..." is cut off."""

    def __init__(self, chat: Chat, *texts: str) -> None:
        self._chat = chat
        self._texts = list(texts)
        self.wishes: list[Wish] = []

    async def __call__(self, wish: Wish) -> Turn:
        self.wishes.append(wish)
        text = self._texts.pop(0)
        ended = not text.endswith("...")
        return Turn([*ids(self._chat, text), *([END] if ended else [])], ended)


Make = Callable[..., tuple[Writer, Scripted]]


@pytest.fixture
def make(chat: Chat) -> Make:
    def writer(*texts: str, turns: int = 1, max_model_len: int = 512) -> tuple[Writer, Scripted]:
        scripted = Scripted(chat, *texts)
        settings = SynthesizeSettings(["h:1"], "out", turns=turns)
        return Writer(chat, scripted, settings, max_model_len, "f", frozenset({END})), scripted

    return writer


def many_turns(writer: Writer, turns: int) -> int:
    """An index whose conversation has so many turns."""
    import random

    from drafter_svc.train.synthesize.writer import seed_of

    most = writer.settings.turns
    return next(
        i for i in range(1000)
        if random.Random(seed_of(0, i, "turns")).randint(1, most) == turns
    )  # fmt: skip


async def test_the_target_asks_and_answers(make: Make) -> None:
    writer, scripted = make("Why is it so", "Because.")
    outcome = await writer.write(5, Prompt("self"))
    assert outcome.record == {
        "messages": [
            {"role": "user", "content": "Why is it so"},
            {"role": "assistant", "content": "Because."},
        ],
        "finish_reason": "stop",
        "temperature": temperature_of(5),
        "source": "self",
        "target": "f",
    }
    assert (outcome.user_tokens, outcome.answer_tokens) == (13, 9)
    asked, answered = scripted.wishes
    assert (asked.temperature, asked.top_p, asked.max_tokens) == (1.0, 0.95, 256)
    assert asked.stop == {END}
    assert (answered.temperature, answered.top_p) == (temperature_of(5), 1.0)
    assert asked.seed != answered.seed
    again, repeated = make("Why is it so", "Because.")
    await again.write(5, Prompt("self"))
    assert repeated.wishes == scripted.wishes, "what is drawn depends on the index alone"


async def test_given_turns_are_answered_anew(make: Make) -> None:
    system = {"role": "system", "content": "Be brief."}
    writer, scripted = make("One.", "Two...", turns=2)
    outcome = await writer.write(0, Prompt("file", (system,), ("a", "b", "c")))
    assert outcome.record is not None
    assert [m["content"] for m in outcome.record["messages"]] == [
        "Be brief.", "a", "One.", "b", "Two...",
    ]  # fmt: skip
    assert outcome.record["finish_reason"] == "length"
    assert outcome.record["source"] == "file"
    assert len(scripted.wishes) == 2


async def test_several_turns_alternate(make: Make) -> None:
    writer, _ = make("q one", "a one", "q two", "a two", "q three", "a three", turns=3)
    outcome = await writer.write(many_turns(writer, 3), Prompt("self"))
    assert outcome.record is not None
    assert [m["role"] for m in outcome.record["messages"]] == ["user", "assistant"] * 3


async def test_an_answer_that_was_cut_off_ends_the_conversation(make: Make) -> None:
    writer, scripted = make("q one", "a one...", turns=3)
    outcome = await writer.write(many_turns(writer, 3), Prompt("self"))
    assert outcome.record is not None
    assert outcome.record["finish_reason"] == "length"
    assert (len(outcome.record["messages"]), len(scripted.wishes)) == (2, 2)


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (("on and on...",), "user turn without end"),
        ((" ",), "empty user turn"),
        (("a <|im_start|> b",), "user turn with special tokens"),
        (("again and " * 10,), "user turn that loops"),
        (("fine", ""), "empty answer"),
        (("fine", "so <|im_start|>"), "answer with special tokens"),
        (("fine", "again and " * 10), "answer that loops"),
    ],
)
async def test_bad_turns_drop_the_conversation_or_end_it_before_them(
    make: Make, texts: tuple[str, ...], reason: str
) -> None:
    writer, _ = make(*texts)
    outcome = await writer.write(0, Prompt("self"))
    assert (outcome.record, outcome.dropped, outcome.cut) == (None, reason, "")
    writer, _ = make("q", "a", *texts, turns=2)
    outcome = await writer.write(many_turns(writer, 2), Prompt("self"))
    assert outcome.record is not None
    assert [m["content"] for m in outcome.record["messages"]] == ["q", "a"]
    assert (outcome.dropped, outcome.cut) == ("", reason)


async def test_a_prompt_without_room_is_dropped(make: Make) -> None:
    writer, scripted = make(max_model_len=64)
    outcome = await writer.write(0, Prompt("file", (), ("x" * 50,)))
    assert outcome.dropped == "no room in the context"
    writer, scripted = make("short", max_model_len=100)
    outcome = await writer.write(0, Prompt("file", (), ("x" * 30,)))
    assert outcome.record is not None
    assert scripted.wishes[0].max_tokens == 100 - len(scripted.wishes[0].tokens)


def test_temperatures_are_spread_over_the_whole_range() -> None:
    drawn = [temperature_of(index) for index in range(100)]
    assert min(drawn) == 0
    assert max(drawn) <= 1
    for tenth in range(10):
        assert 8 <= sum(tenth / 10 <= t < (tenth + 1) / 10 for t in drawn) <= 12
