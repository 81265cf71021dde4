"""Whole syntheses against a real verifier service with the tiny target."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from drafter_svc.train.synthesize import verifier_pool as fleet_module
from drafter_svc.train.synthesize.__main__ import main
from drafter_svc.train.synthesize.chat_template import Chat
from drafter_svc.train.synthesize.jsonl_output import Output, table
from drafter_svc.train.synthesize.pipeline import synthesize
from drafter_svc.train.synthesize.settings import SynthesizeSettings
from drafter_svc.train.synthesize.writer import Outcome
from specserve.model_source import ModelSource
from tests.support.ports import free_port
from tests.support.running_engine import reference_of, target_of
from tests.support.served_verifier import served_verifier
from tests.support.tiny_llama import write_tiny_llama
from verifier_svc.model.loading.loader import load_tokenizer_files


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "given.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Tell me of {n}"}) + "\n" for n in range(14)))
    return path


def settings_for(out: Path, address: str, prompts: Path, **changes: Any) -> SynthesizeSettings:
    settings = SynthesizeSettings(
        [address], str(out), count=16, prompts=[str(prompts)], turns=2, max_user_tokens=80,
        max_answer_tokens=12, max_loop_share=0.5,
    )  # fmt: skip
    return replace(settings, **changes)


def records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def meta_of(path: Path) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads(Path(f"{path}.meta.json").read_text())
    return meta


async def test_a_synthesis_is_whole_tells_its_origin_and_is_the_targets_own_text(
    tiny_llama: Path, tmp_path: Path, prompts: Path
) -> None:
    out = tmp_path / "run" / "out.jsonl"
    async with served_verifier(tiny_llama, "--max-sequences", "4") as served:
        settings = settings_for(out, f"127.0.0.1:{served.port}", prompts)
        meta = await synthesize(settings)
    records = records_of(out)
    assert meta == meta_of(out)
    assert meta["next"] == meta["total"] == 30
    assert meta["kept"] == len(records) > 5
    assert meta["kept"] + sum(meta["dropped"].values()) == 30
    assert meta["target"]["fingerprint"] == target_of(tiny_llama).fingerprint
    assert meta["prompts"] == [{"source": "given.jsonl", "count": 14}]
    assert meta["settings"]["max_answer_tokens"] == 12
    assert meta["answer_tokens"] > 0
    assert {r["source"] for r in records} == {"self", "given.jsonl"}
    assert {len(r["messages"]) for r in records} <= {2, 4}
    for record in records:
        assert set(record) == {"messages", "finish_reason", "temperature", "source", "target"}
        roles = [m["role"] for m in record["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(m["content"].strip() for m in record["messages"])
    assert "conversations kept" in table(meta)
    assert f"{len(records)} of 30" in table(meta)


async def test_a_greedy_answer_is_that_of_transformers(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drafter_svc.train.synthesize.writer._GOLDEN", 0.0)
    path = tmp_path / "given.jsonl"
    path.write_text("".join(json.dumps({"prompt": c * 3}) + "\n" for c in "abcdefghijklmnop"))
    out = tmp_path / "out.jsonl"
    async with served_verifier(tiny_llama) as served:
        settings = settings_for(
            out, f"127.0.0.1:{served.port}", path, count=0, turns=1, max_loop_share=1.0
        )
        await synthesize(settings)
    files = load_tokenizer_files(ModelSource.parse(str(tiny_llama)), trust_remote_code=False)
    chat = Chat(files, "tiny", [1])
    records = records_of(out)
    assert len(records) > 3
    for record in records:
        question, answer = record["messages"]
        tokens = chat.answer_prompt([question])
        # Without the mask, generate would take the template's tokens of id 0 for padding.
        written = reference_of(tiny_llama).generate(
            torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens)), max_new_tokens=12,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )[0, len(tokens) :].tolist()  # fmt: skip
        ended = 1 in written
        written = written[: written.index(1) + 1] if ended else written
        assert answer["content"] == chat.text(written)
        assert record["finish_reason"] == ("stop" if ended else "length")


async def test_a_synthesis_goes_on_where_it_was_stopped(
    tiny_llama: Path, tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drafter_svc.train.synthesize.jsonl_output._SAVE_SECONDS", 0.0)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    async with served_verifier(tiny_llama, "--max-sequences", "2") as served:
        settings = settings_for(whole, f"127.0.0.1:{served.port}", prompts)
        await synthesize(settings)
        settings = replace(settings, out=str(out))
        stops = 0
        while True:
            task = asyncio.create_task(synthesize(settings))
            before = meta_of(out)["next"] if out.exists() else 0
            while not task.done() and (
                not Path(f"{out}.meta.json").exists() or meta_of(out)["next"] < before + 5
            ):
                await asyncio.sleep(0.005)
            if task.done():
                break
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            stops += 1
            # Killed between a record and its count: it is on disk, whole and torn.
            with out.open("a") as file:
                file.write('{"messages": []}\n{"mess')
    assert stops >= 2
    assert out.read_text() == whole.read_text(), "no record lost, doubled or another"
    counts = ("kept", "dropped", "cut", "answer_tokens", "finish_reasons")
    assert [meta_of(out)[name] for name in counts] == [meta_of(whole)[name] for name in counts]


async def test_finished_work_is_not_done_again(
    tiny_llama: Path, tmp_path: Path, prompts: Path
) -> None:
    out = tmp_path / "out.jsonl"
    async with served_verifier(tiny_llama) as served:
        settings = settings_for(out, f"127.0.0.1:{served.port}", prompts, count=4)
        first = await synthesize(settings)
        text = out.read_text()
        again = await synthesize(settings)
    assert out.read_text() == text
    assert {**first, "seconds": 0} == {**again, "seconds": 0}


async def test_the_same_prompt_twice_is_kept_once(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "same.jsonl"
    path.write_text(json.dumps({"prompt": "Tell me a story"}) * 1 + "\n")
    path.write_text(path.read_text() * 12)
    out = tmp_path / "out.jsonl"
    async with served_verifier(tiny_llama) as served:
        settings = settings_for(out, f"127.0.0.1:{served.port}", path, count=0, turns=1)
        meta = await synthesize(settings)
    assert meta["kept"] == 1
    assert meta["dropped"]["near-duplicate"] > 0


async def test_another_run_is_not_continued(
    tiny_llama: Path, tmp_path: Path, prompts: Path
) -> None:
    out = tmp_path / "out.jsonl"
    async with served_verifier(tiny_llama) as served:
        settings = settings_for(out, f"127.0.0.1:{served.port}", prompts, count=2)
        await synthesize(settings)
        for changes, sentence in (
            ({"seed": 1}, "made with other settings (seed was 0)"),
            ({"prompts": []}, "made with other prompts"),
        ):
            with pytest.raises(ValueError, match=r"made with other") as error:
                await synthesize(replace(settings, **changes))
            assert sentence in str(error.value)
        stranger = tmp_path / "stranger.jsonl"
        stranger.write_text("{}\n")
        with pytest.raises(ValueError, match="was not made by synthesize"):
            await synthesize(replace(settings, out=str(stranger)))
        assert stranger.read_text() == "{}\n"
        out.write_text("")
        with pytest.raises(ValueError, match="is shorter than"):
            await synthesize(settings)


def test_two_syntheses_never_write_one_file(tmp_path: Path) -> None:
    origin: dict[str, Any] = {"target": {}, "settings": {}, "prompts": []}
    first = Output(tmp_path / "out.jsonl", origin, 1)
    with pytest.raises(ValueError, match="another synthesis is writing"):
        Output(tmp_path / "out.jsonl", origin, 1)
    first.close()
    Output(tmp_path / "out.jsonl", origin, 1).close()


def test_a_full_disk_leaves_what_can_be_continued(tmp_path: Path) -> None:
    origin: dict[str, Any] = {"target": {}, "settings": {}, "prompts": []}
    output = Output(tmp_path / "out.jsonl", origin, 3)
    output.add(Outcome(record={"messages": [], "finish_reason": "stop"}))
    output.save()
    output._file.close()
    output._file = Path("/dev/full").open("ab+")  # noqa: SIM115
    output.add(Outcome(record={"messages": [], "finish_reason": "stop"}))
    with pytest.raises(OSError, match="No space left"):
        output.save()
    again = Output(tmp_path / "out.jsonl", origin, 3)
    assert again.next == 1
    assert len(list(again.records())) == 1
    again.close()


async def test_verifiers_share_the_work_and_one_may_go(
    tiny_llama: Path, tmp_path: Path, prompts: Path
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    async with (
        served_verifier(tiny_llama, "--max-sequences", "2") as here,
        AsyncExitStack() as away,
    ):
        there = await away.enter_async_context(served_verifier(tiny_llama, "--max-sequences", "2"))
        both = [f"127.0.0.1:{served.port}" for served in (here, there)]
        settings = replace(settings_for(whole, both[0], prompts), verifiers=both[:1])
        await synthesize(settings)
        task = asyncio.create_task(synthesize(replace(settings, verifiers=both, out=str(out))))
        while not (there.dispatcher.calls and here.dispatcher.calls):
            assert not task.done()
            await asyncio.sleep(0)
        await away.aclose()
        await task
    assert out.read_text() == whole.read_text()


async def test_verifiers_of_two_targets_are_refused(
    tiny_llama: Path, tmp_path: Path, prompts: Path
) -> None:
    other = write_tiny_llama(tmp_path / "other", seed=7)
    async with served_verifier(tiny_llama) as a, served_verifier(other) as b:
        addresses = [f"127.0.0.1:{a.port}", f"127.0.0.1:{b.port}"]
        settings = settings_for(tmp_path / "out.jsonl", "", prompts, verifiers=addresses)
        with pytest.raises(ValueError, match="serves another target"):
            await synthesize(settings)


async def test_verifiers_that_are_not_there_are_named(
    tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "_START_SECONDS", 0.3)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ValueError, match=rf"none can be reached \({address}: "):
        await synthesize(settings_for(tmp_path / "out.jsonl", address, prompts))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"verifiers": []}, "verifiers must name at least one"),
        ({"count": 0, "prompts": []}, "count must be above 0"),
        ({"count": -1}, "count must be above 0"),
        ({"turns": 0}, "turns must be at least 1"),
        ({"max_answer_tokens": 0}, "max_answer_tokens must be at least 1"),
        ({"user_temperature": 0.0}, "user_temperature must be in"),
        ({"user_top_p": 1.5}, "user_top_p must be in"),
        ({"max_similarity": 0.0}, "max_similarity must be in"),
    ],
)
def test_bad_settings_name_their_field(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(SynthesizeSettings(["h:1"], "out"), **changes)


def test_the_command_says_in_one_sentence_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "synthesize",
        "--verifiers",
        "h:1",
        "--out",
        str(tmp_path / "o"),
        "--prompts",
        "x.jsonl",
    ]
    monkeypatch.setattr("sys.argv", arguments)
    assert main() == 2
    assert capsys.readouterr().err == (
        "drafter_svc.train.synthesize: prompts: there is no file x.jsonl\n"
    )
