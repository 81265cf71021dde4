"""The drafter's forward pass against the formulas of EAGLE-3 and EAGLE-3.1, written out."""

import itertools

import pytest
import torch
from torch import Tensor

from drafter_svc.model.config import DrafterConfig
from drafter_svc.model.eagle import EagleDrafter
from drafter_svc.model.rope import Rope, rotate
from tests.support.tiny_drafter import tiny_config, tiny_drafter

TOGGLES = list(itertools.product([False, True], repeat=3))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def turn(x: Tensor, position: int, theta: float) -> Tensor:
    """RoPE of one head by complex multiplication of (j, j + d/2) pairs."""
    half = len(x) // 2
    angle = torch.tensor([position * theta ** (-2 * j / len(x)) for j in range(half)])
    turned = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones(half), angle)
    return torch.cat([turned.real, turned.imag])


def written_out(
    config: DrafterConfig, w: dict[str, Tensor], features: Tensor, embeds: Tensor, position: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(layer output, logits, recycled state) of one position that attends to itself only."""
    eps = config.rms_norm_eps
    chunks = features.chunk(3)
    if config.fc_norm:
        chunks = tuple(
            rms_norm(chunk, w[f"fc_norm.{i}.weight"], eps) for i, chunk in enumerate(chunks)
        )
    g = w["fc.weight"] @ torch.cat(chunks)
    normed = rms_norm(g, w["midlayer.hidden_norm.weight"], eps)
    pair = torch.cat([rms_norm(embeds, w["midlayer.input_layernorm.weight"], eps), normed])
    value = (w["midlayer.self_attn.v_proj.weight"] @ pair).view(config.num_key_value_heads, -1)
    group = config.num_attention_heads // config.num_key_value_heads
    attended = value.repeat_interleave(group, dim=0).flatten()
    h = normed if config.norm_before_residual else g
    h = h + w["midlayer.self_attn.o_proj.weight"] @ attended
    x = rms_norm(h, w["midlayer.post_attention_layernorm.weight"], eps)
    gate = w["midlayer.mlp.gate_proj.weight"] @ x
    up = w["midlayer.mlp.up_proj.weight"] @ x
    h = h + w["midlayer.mlp.down_proj.weight"] @ (gate * gate.sigmoid() * up)
    final = rms_norm(h, w["norm.weight"], eps)
    return h, w["lm_head.weight"] @ final, final if config.norm_output else h


def to_itself(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    group = queries.shape[-2] // keys.shape[-2]
    return values.repeat_interleave(group, dim=-2).flatten(-2)


@pytest.mark.parametrize(("fc_norm", "norm_output", "before"), TOGGLES)
def test_forward_is_the_formula(fc_norm: bool, norm_output: bool, before: bool) -> None:
    config = tiny_config(fc_norm=fc_norm, norm_output=norm_output, norm_before_residual=before)
    drafter = tiny_drafter(config)
    features, embeds = torch.randn(1, 48), torch.randn(1, 16)
    with torch.no_grad():
        hidden = drafter.layer(embeds, drafter.fuse(features), torch.tensor([7]), to_itself)
        expected = written_out(config, drafter.state_dict(), features[0], embeds[0], 7)
        torch.testing.assert_close(hidden[0], expected[0])
        torch.testing.assert_close(drafter.logits(hidden)[0], expected[1])
        torch.testing.assert_close(drafter.recycle(hidden)[0], expected[2])


@pytest.mark.parametrize("norm_output", [False, True])
@pytest.mark.parametrize("fc_norm", [False, True])
def test_forward_of_an_mtp_head_is_the_formula(fc_norm: bool, norm_output: bool) -> None:
    config = tiny_config(mtp_head=True, aux_layers=(4,), fc_norm=fc_norm, norm_output=norm_output)
    drafter = tiny_drafter(config)
    w, eps = drafter.state_dict(), config.rms_norm_eps
    feature, embed = torch.randn(16), torch.randn(16)
    with torch.no_grad():
        state = drafter.fuse(feature[None])
        hidden = drafter.layer(embed[None], state, torch.tensor([7]), to_itself)

        g = rms_norm(feature, w["fc_norm.0.weight"], eps) if fc_norm else feature
        torch.testing.assert_close(state[0], g)
        e = rms_norm(embed, w["midlayer.input_layernorm.weight"], eps)
        pair = torch.cat([e, rms_norm(g, w["midlayer.hidden_norm.weight"], eps)])
        h = w["midlayer.eh_proj.weight"] @ pair
        x = rms_norm(h, w["midlayer.layer.input_layernorm.weight"], eps)
        value = (w["midlayer.layer.self_attn.v_proj.weight"] @ x).view(2, -1)
        attended = value.repeat_interleave(2, dim=0).flatten()
        h = h + w["midlayer.layer.self_attn.o_proj.weight"] @ attended
        x = rms_norm(h, w["midlayer.layer.post_attention_layernorm.weight"], eps)
        gate = w["midlayer.layer.mlp.gate_proj.weight"] @ x
        up = w["midlayer.layer.mlp.up_proj.weight"] @ x
        h = h + w["midlayer.layer.mlp.down_proj.weight"] @ (gate * gate.sigmoid() * up)
        torch.testing.assert_close(hidden[0], h)
        final = rms_norm(h, w["norm.weight"], eps)
        torch.testing.assert_close(drafter.logits(hidden)[0], w["lm_head.weight"] @ final)
        torch.testing.assert_close(drafter.recycle(hidden)[0], final if norm_output else h)


def test_queries_and_keys_are_turned_by_their_position() -> None:
    config = tiny_config()
    drafter = tiny_drafter(config)
    seen: dict[str, Tensor] = {}

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        seen.update(queries=queries, keys=keys)
        return queries.flatten(-2)

    embeds, state = torch.randn(2, 16), torch.randn(2, 16)
    with torch.no_grad():
        drafter.layer(embeds, state, torch.tensor([0, 0]), attend)
        flat = dict(seen)
        drafter.layer(embeds, state, torch.tensor([3, 90]), attend)
    for name, heads in (("queries", 4), ("keys", 2)):
        for row, position in enumerate((3, 90)):
            for head in range(heads):
                expected = turn(flat[name][row, head], position, config.rope_theta)
                torch.testing.assert_close(seen[name][row, head], expected, rtol=1e-4, atol=1e-4)


def test_scores_depend_on_the_distance_only() -> None:
    query, key = torch.randn(1, 1, 8), torch.randn(1, 1, 8)
    rope = Rope(8, 1e4)

    def score(at: int, past: int) -> Tensor:
        turned = rotate(query, rope(torch.tensor([at])))
        return (turned * rotate(key, rope(torch.tensor([past])))).sum()

    torch.testing.assert_close(score(9, 4), score(105, 100), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(score(9, 4), score(9, 5), rtol=1e-3)


@pytest.mark.parametrize("norm_output", [False, True])
def test_logits_norm_the_layer_output_once(norm_output: bool) -> None:
    drafter = tiny_drafter(tiny_config(norm_output=norm_output))
    hidden = torch.randn(3, 16) * 5
    with torch.no_grad():
        once = drafter.norm(hidden)
        torch.testing.assert_close(drafter.logits(hidden), drafter.lm_head(once))
        assert not torch.allclose(drafter.logits(hidden), drafter.lm_head(drafter.norm(once)))
        recycled = drafter.recycle(hidden)
    assert torch.equal(recycled, once if norm_output else hidden)


def test_the_embedding_reaches_the_output_through_attention_only() -> None:
    drafter = tiny_drafter(tiny_config())
    torch.nn.init.zeros_(drafter.midlayer.self_attn.o_proj.weight)
    state, position = torch.randn(1, 16), torch.tensor([2])
    with torch.no_grad():
        one = drafter.layer(torch.randn(1, 16), state, position, to_itself)
        other = drafter.layer(torch.randn(1, 16), state, position, to_itself)
    assert torch.equal(one, other)


def test_batch_dimensions_change_nothing() -> None:
    drafter = tiny_drafter(tiny_config())
    features, embeds = torch.randn(2, 3, 48), torch.randn(2, 3, 16)
    positions = torch.arange(6).view(2, 3)
    with torch.no_grad():
        batched = drafter.layer(embeds, drafter.fuse(features), positions, to_itself)
        flat = drafter.layer(
            embeds.flatten(0, 1),
            drafter.fuse(features.flatten(0, 1)),
            positions.flatten(),
            to_itself,
        )
    torch.testing.assert_close(batched.flatten(0, 1), flat)


def test_bf16_features_and_weights_give_fp32_logits() -> None:
    drafter = EagleDrafter(tiny_config()).to(torch.bfloat16)
    state = drafter.fuse(torch.randn(2, 48))
    hidden = drafter.layer(state, state, torch.arange(2), to_itself)
    assert hidden.dtype == torch.bfloat16
    assert drafter.logits(hidden).dtype == torch.float32
