"""The probe finds the one reading under which a drafter repeats its target."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drafter_svc.formats.checkpoint import LoadedDrafter, save_checkpoint
from drafter_svc.formats.declared import UserOverrides
from drafter_svc.model.config import DrafterConfig
from drafter_svc.model.eagle import EagleDrafter
from drafter_svc.train.evaluation.layer_probe import LayerProbe, run_layer_probe, verdict
from drafter_svc.train.target.target import Target, load_target
from drafter_svc.train.validate import Fit, validate

VOCAB = 97


class Late:
    """The target, but each logit one position late: a drafter's first token is then the one that
    the state of its own position already tells."""

    def __init__(self, model: Any) -> None:
        self.base_model, self.config = model.base_model, model.config
        self._model = model

    def get_input_embeddings(self) -> nn.Module:
        return self._model.get_input_embeddings()  # type: ignore[no-any-return]

    def get_output_embeddings(self) -> nn.Module:
        return self._model.get_output_embeddings()  # type: ignore[no-any-return]

    def __call__(self, ids: Tensor, **arguments: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self._model(ids, **arguments).logits.roll(1, dims=1))


@pytest.fixture(scope="module")
def target(tiny_llama: Path) -> Target:
    return load_target(str(tiny_llama))


def config_of(target: Target, aux_layers: tuple[int, ...]) -> DrafterConfig:
    return DrafterConfig(
        hidden_size=32, target_hidden_size=32, intermediate_size=8, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, max_position_embeddings=256, vocab_size=VOCAB,
        draft_vocab_size=VOCAB, rms_norm_eps=1e-6, rope_theta=1e4, fc_norm=False,
        norm_output=True, norm_before_residual=False, aux_layers=aux_layers,
        target_fingerprint=target.fingerprint,
    )  # fmt: skip


def echo(target: Target, aux_layers: tuple[int, ...]) -> EagleDrafter:
    """Passes the highest captured state to the target's norm and head, whatever the token."""
    drafter = EagleDrafter(config_of(target, aux_layers)).requires_grad_(False)
    for name, parameter in drafter.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.zero_()
    drafter.fc.weight.zero_()
    drafter.fc.weight[:, -32:] = torch.eye(32)
    drafter.norm.weight.copy_(target.model.base_model.norm.weight)
    drafter.lm_head.weight.copy_(target.head)
    return drafter


def probe_of(target: Target, aux_layers: tuple[int, ...]) -> LayerProbe:
    drafter = echo(target, aux_layers)
    loaded = LoadedDrafter(drafter, drafter.config, torch.zeros(VOCAB, dtype=torch.int64), "")
    torch.manual_seed(0)
    answers = [(torch.randint(0, VOCAB, (60,)), 5) for _ in range(4)]
    return run_layer_probe(loaded, target, answers)


def best(probe: LayerProbe) -> tuple[int, int]:
    row = max(probe.rows, key=lambda row: row.agreement)
    return row.offset, row.shift


@pytest.mark.parametrize(
    ("aux_layers", "late", "reading"),
    [
        ((1, 2, 4), True, (0, 0)),  # 4 is the last state, before the final norm
        ((1, 2, 3), True, (1, 0)),
        ((1, 2, 4), False, (0, -1)),
        ((1, 2, 3), False, (1, -1)),
    ],
)
def test_the_right_reading_is_found(
    target: Target, aux_layers: tuple[int, ...], late: bool, reading: tuple[int, int]
) -> None:
    if late:
        target = replace(target, model=Late(target.model))
    probe = probe_of(target, aux_layers)
    assert best(probe) == reading
    assert max(row.agreement for row in probe.rows) > 0.97
    reason = verdict(probe)
    if reading == (0, 0):
        assert reason is None
    else:
        assert reason is not None
        assert ("aux layers are off by +1" in reason) == (reading[0] == 1)
        assert ("tokens are paired -1 off" in reason) == (reading[1] == -1)


def test_readings_beyond_the_target_are_left_out(target: Target) -> None:
    assert {row.offset for row in probe_of(target, (1, 2, 4)).rows} == {-1, 0}
    assert {row.offset for row in probe_of(target, (0, 2, 4)).rows} == {0}
    assert len(probe_of(target, (1, 2, 3)).rows) == 9


def test_a_drafter_that_knows_nothing_is_refused(target: Target) -> None:
    drafter = echo(target, (1, 2, 3))
    drafter.lm_head.weight.zero_()
    loaded = LoadedDrafter(drafter, drafter.config, torch.zeros(VOCAB, dtype=torch.int64), "")
    answers = [(torch.randint(0, VOCAB, (80,)), 5)]
    reason = verdict(run_layer_probe(loaded, target, answers))
    assert reason is not None
    assert "standard errors" in reason


def saved(folder: Path, drafter: EagleDrafter, **changes: Any) -> str:
    if changes:
        drafter = EagleDrafter(replace(drafter.config, **changes))
    save_checkpoint(folder, drafter, torch.arange(drafter.config.draft_vocab_size))
    return str(folder)


def run(folder: str, target: Path, lines: Sequence[str] = ("tell me",), tokens: int = 80) -> Fit:
    prompts = Path(folder) / "prompts.txt"
    prompts.write_text("\n".join(lines))
    return validate(folder, str(target), UserOverrides(), str(prompts), tokens)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_fingerprint": "0" * 64}, "made for target 000000000000"),
        ({"vocab_size": 98}, "vocabulary is 98 in the checkpoint and 97"),
        ({"aux_layers": (1, 2, 5)}, "aux layer 5 is not among the target's 4"),
    ],
)
def test_another_target_is_refused_before_the_probe(
    tmp_path: Path, target: Target, tiny_llama: Path, changes: dict[str, Any], words: str
) -> None:
    fit = run(saved(tmp_path, echo(target, (1, 2, 3)), **changes), tiny_llama)
    assert fit.probe is None
    assert fit.reason is not None
    assert words in fit.reason


def test_the_target_answers_the_prompts_itself(
    tmp_path: Path, target: Target, tiny_llama: Path
) -> None:
    fit = run(saved(tmp_path, echo(target, (1, 2, 3))), tiny_llama, ("hello", "", "who?"))
    assert fit.probe is not None
    assert 64 <= fit.probe.positions <= 160
    assert fit.reason is not None  # it echoes, and so is paired one off
    text = "\n".join(fit.lines())
    assert "fingerprint: the same" in text
    assert "It does not fit: " in text


def test_too_little_text_is_refused(tmp_path: Path, target: Target, tiny_llama: Path) -> None:
    folder = saved(tmp_path, echo(target, (1, 2, 3)))
    with pytest.raises(ValueError, match="the probe needs 64"):
        run(folder, tiny_llama, tokens=9)
    with pytest.raises(ValueError, match="--tokens is 7"):
        run(folder, tiny_llama, tokens=7)
    with pytest.raises(ValueError, match="no line of text"):
        run(folder, tiny_llama, ("",))
