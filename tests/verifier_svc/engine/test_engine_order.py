"""What happens in which order after a step, and when asking for drafts fails."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine_fixtures import PROMPTS, VOCAB, Texts, check_usage
from tests.support.running_engine import RunningEngine
from tests.support.scripted_drafter import ScriptedDrafter, random_guesses
from verifier_svc.metrics import Metrics
from verifier_svc.request.sequence import Sequence
from verifier_svc.speculation.coordinator import DraftCoordinator

MakeDrafter = Callable[..., ScriptedDrafter]


def watch(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, note: Callable[[], None]) -> None:
    """Call `note` before each call of a method."""
    method = getattr(owner, name)

    def noted(*arguments: Any, **named: Any) -> Any:
        note()
        return method(*arguments, **named)

    monkeypatch.setattr(owner, name, noted)


def test_drafts_are_asked_for_before_the_step_is_counted(
    tiny_llama: Path, drafter: MakeDrafter, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    watch(monkeypatch, DraftCoordinator, "send", lambda: order.append("send"))
    watch(monkeypatch, DraftCoordinator, "observe", lambda: order.append("score"))
    watch(monkeypatch, Metrics, "count_rounds", lambda: order.append("count"))
    port = drafter(random_guesses(VOCAB))
    with RunningEngine(tiny_llama, port, "--draft-length", "2") as engine:
        engine.generate(PROMPTS[1], max_tokens=9, ignore_eos=True)
    port.settle()
    first = order.index("score") - 1
    told = order[first : len(order) - order[::-1].index("count")]
    assert told == ["send", "score", "count"] * (len(told) // 3)
    assert len(told) >= 12


def fails_at_the_end_of(seq: int) -> Callable[..., None]:
    """`DraftCoordinator.send` that fails in the step in which a sequence has ended."""
    send, seen = DraftCoordinator.send, set[int]()

    def fails(self: DraftCoordinator, sequences: Items[Sequence], now: float) -> None:
        here = {sequence.id for sequence in sequences}
        seen.update(here)
        if here and seq in seen - here:
            seen.clear()
            raise OSError("no room to send")
        send(self, sequences, now)

    return fails


def test_what_was_drawn_is_emitted_where_asking_for_drafts_fails(
    tiny_llama: Path, texts: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, text = PROMPTS[1], texts[1]
    monkeypatch.setattr(DraftCoordinator, "send", fails_at_the_end_of(2))
    with RunningEngine(tiny_llama) as engine:
        long = engine.submit(prompt, max_tokens=30, ignore_eos=True)
        short = engine.submit(prompt, max_tokens=4, ignore_eos=True)
        failed, ended = engine.finish(long, short)
        assert ended.text == text[: len(prompt) + 4]
        check_usage(ended)
        assert failed.failed.elsewhere
        assert len(failed.text) >= len(prompt) + 4, "what its last step drew included"
        assert failed.text == text[: len(failed.text)]
        again = engine.generate(PROMPTS[2], max_tokens=5, ignore_eos=True)
        assert again.text == texts[2][: len(PROMPTS[2]) + 5]
