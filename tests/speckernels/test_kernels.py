"""The kernels against slow references, compiled and as torch's operators."""

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

import speckernels as kernels
from speckernels.exponential_noise import exponentials
from specserve.settings import StartError


@pytest.fixture(params=[*kernels.levels_here(), "off"], autouse=True)
def compiled(request: pytest.FixtureRequest) -> Iterator[bool]:
    if request.param == "off":
        kernels.load_kernels("off")
    elif shutil.which("g++") is None:
        pytest.skip("no C++ compiler here")
    else:
        kernels.load_kernels("on", request.param)
    yield request.param != "off"
    kernels.load_kernels("off")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noise_of(rows: int, temperature: float) -> kernels.SamplingKeys:
    seeds = torch.randint(-(2**63), 2**63 - 1, (rows,), generator=torch.Generator().manual_seed(1))
    temperatures = torch.full((rows,), temperature)
    return kernels.SamplingKeys(
        seeds, torch.arange(rows) + 70_000, torch.arange(rows) % 3, temperatures
    )


def whole_race(logits: torch.Tensor, noise: kernels.SamplingKeys, ids: torch.Tensor) -> list[int]:
    keys = noise.seeds[:, None], noise.positions[:, None], ids, noise.choices[:, None]
    scaled = (logits.float() / noise.temperatures[:, None]).double()
    ratios = exponentials(*keys) * torch.exp(scaled.amax(-1, keepdim=True) - scaled)
    winners: list[int] = ratios.argmin(-1).tolist()
    return winners


@pytest.mark.parametrize(
    ("width", "spread"), [(1, 1.0), (2, 1.0), (64, 0.0), (97, 3.0), (1000, 0.01), (5003, 6.0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_races_are_won_by_the_winner_over_all_tokens(
    width: int, spread: float, dtype: torch.dtype
) -> None:
    rows = 40
    logits = (random(rows, width) * spread).to(dtype)
    logits[:, 1::7] = -math.inf
    for temperature in (0.05, 0.8, 4.0):
        noise = noise_of(rows, temperature)
        wanted = whole_race(logits, noise, torch.arange(width))
        assert kernels.sample(logits, noise).tolist() == wanted
        ids = torch.arange(width) * 5 + 3
        assert kernels.sample(logits, noise, ids).tolist() == whole_race(logits, noise, ids)


def test_rows_may_be_views_and_rows_of_temperature_zero_take_the_first_argmax() -> None:
    logits = random(6, 200)[:, 50:150]
    logits[2, [7, 70]] = 9.0
    noise = noise_of(6, 0.9)
    noise.temperatures[2:4] = 0
    wanted = whole_race(logits, noise_of(6, 0.9), torch.arange(100))
    wanted[2:4] = [7, int(logits[3].argmax())]
    assert kernels.sample(logits, noise).tolist() == wanted
    assert kernels.sample(logits).tolist() == logits.argmax(-1).tolist()


def test_runs_of_rows_are_drawn_up_to_what_was_not_expected() -> None:
    logits, noise = random(7, 500), noise_of(7, 1.0)
    drawn = kernels.sample(logits, noise).tolist()
    # Runs of four, one, and two rows; the second and the sixth row draw something else.
    expected = [drawn[0], drawn[1] ^ 1, drawn[2], -1, -1, drawn[5] ^ 1, -1]
    found = kernels.sample(logits, noise, expected=torch.tensor(expected)).tolist()
    counting = (0, 1, 4, 5)
    assert [found[i] for i in counting] == [drawn[i] for i in counting]
    expected[1], expected[5] = drawn[1], drawn[5]
    assert kernels.sample(logits, noise, expected=torch.tensor(expected)).tolist() == drawn


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_without_finite_logits_have_no_winner(bad: float) -> None:
    logits = random(3, 90)
    logits[0] = -math.inf
    logits[2, 88] = bad
    for noise in (None, noise_of(3, 1.0)):
        winners = kernels.sample(logits, noise)
        assert winners.tolist()[::2] == [-1, -1]
        assert winners[1] >= 0
        assert kernels.token_probs(logits, winners).tolist()[::2] == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shares_are_the_softmax(dtype: torch.dtype) -> None:
    logits = (random(5, 333) * 4).to(dtype)
    winners = logits.float().argmax(-1)
    winners[1] = 332
    wanted = logits.double().softmax(-1)[torch.arange(5), winners]
    assert kernels.token_probs(logits, winners).tolist() == pytest.approx(wanted.tolist(), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [6, 16, 64, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 3), (4, 4), (7, 1), (25, 1)])
def test_rows_attend_to_their_own_slots(
    width: int, heads: int, kv_heads: int, dtype: torch.dtype
) -> None:
    keys = random(600, kv_heads, width).to(dtype)
    values = random(600, kv_heads, width, seed=1).to(dtype)
    # Prompts with and without a past, rows across blocks of keys, single ones.
    counts, starts, lengths = [40, 35, 1, 6, 1], [100, 300, 0, 420, 576], [30, 1, 77, 59, 1]
    segments = [
        kernels.QuerySegment(sum(counts[:i]), counts[i], starts[i], lengths[i], prompt=i in (0, 3))
        for i in range(5)
    ]
    query = random(sum(counts), heads + kv_heads, width, seed=2).to(dtype)[:, :heads]
    for block in (1, 16):
        out = kernels.paged_attention(
            query, keys, values, kernels.AttentionMetadata(segments, block=block), 0.3
        )
        for segment in segments:
            for i in range(segment.count):
                row = segment.row + i
                reach = slice(segment.start, segment.start + segment.length + i)
                k = keys[reach].double().repeat_interleave(heads // kv_heads, 1)
                v = values[reach].double().repeat_interleave(heads // kv_heads, 1)
                weights = torch.einsum("hd,shd->hs", query[row].double() * 0.3, k).softmax(-1)
                wanted = torch.einsum("hs,shd->hd", weights, v)
                tolerance = 3e-2 if dtype == torch.bfloat16 else 1e-5
                assert torch.allclose(out[row].double(), wanted, atol=tolerance)


def attended(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, segment: kernels.QuerySegment
) -> torch.Tensor:
    """What a segment's rows attend to, in fp32."""
    reach = slice(segment.start, segment.start + segment.length + segment.count - 1)
    group = query.shape[1] // keys.shape[1]
    k, v = (kept[reach].float().repeat_interleave(group, 1) for kept in (keys, values))
    rows = query[segment.row : segment.row + segment.count].float()
    scores = torch.einsum("rhd,shd->hrs", rows * 0.2, k)
    last = torch.arange(segment.count)[:, None] + segment.length
    hidden = torch.arange(k.shape[0]) >= last
    return torch.einsum("hrs,shd->rhd", scores.masked_fill(hidden, -math.inf).softmax(-1), v)


@pytest.mark.parametrize(
    ("width", "heads", "kv_heads"),
    [(64, 9, 3), (128, 8, 2), (256, 2, 1), (32, 2, 2), (16, 6, 1), (80, 4, 2), (96, 24, 1)],
)
def test_rows_of_prompts_attend_within_the_rounding_of_their_weights(
    width: int, heads: int, kv_heads: int
) -> None:
    keys, values = (random(720, kv_heads, width, seed=seed).bfloat16() for seed in (0, 1))
    # With and without a past, over one block of keys and over several.
    segments = [
        kernels.QuerySegment(0, 33, 0, 1, prompt=True),
        kernels.QuerySegment(33, 2, 40, 9),
        kernels.QuerySegment(35, 150, 60, 1, prompt=True),
        kernels.QuerySegment(185, 1, 300, 200),
        kernels.QuerySegment(186, 70, 500, 131, prompt=True),
    ]
    query = random(256, heads, width, seed=2).bfloat16()
    out = kernels.paged_attention(
        query, keys, values, kernels.AttentionMetadata(segments, block=16), 0.2
    )
    for segment in segments:
        rows = slice(segment.row, segment.row + segment.count)
        # Weights and what leaves are rounded to bf16, half a unit of 2 ** -8 each.
        far = (out[rows].float() - attended(query, keys, values, segment)).abs().max()
        assert far < 2**-8 * values.float().abs().max()
        # Each segment gets the same alone, to the last bit.
        alone = replace(segment, row=0)
        again = kernels.paged_attention(
            query[rows], keys, values, kernels.AttentionMetadata([alone], block=16), 0.2
        )
        assert torch.equal(again, out[rows])


@pytest.mark.parametrize(("width", "heads", "kv_heads"), [(64, 9, 3), (16, 6, 1), (80, 4, 2)])
def test_a_prompts_rows_come_out_the_same_however_it_is_cut(
    width: int, heads: int, kv_heads: int, compiled: bool
) -> None:
    if not compiled:
        return  # torch's operators promise nothing of the kind
    keys, values = (random(500, kv_heads, width, seed=seed).bfloat16() for seed in (0, 1))
    query = random(330, heads, width, seed=2).bfloat16()
    whole = kernels.AttentionMetadata([kernels.QuerySegment(0, 330, 20, 60, prompt=True)], block=16)
    wanted = kernels.paged_attention(query, keys, values, whole, 0.2)
    at = 0
    for count in (1, 16, 100, 33, 7, 173):
        piece = kernels.AttentionMetadata(
            [kernels.QuerySegment(0, count, 20, 60 + at, prompt=True)], block=16
        )
        out = kernels.paged_attention(query[at : at + count], keys, values, piece, 0.2)
        assert torch.equal(out, wanted[at : at + count])
        at += count
    assert at == 330


def test_what_lies_behind_a_prompt_is_not_read() -> None:
    keys, values = random(200, 1, 32).bfloat16(), random(200, 1, 32, seed=1).bfloat16()
    query, segment = (
        random(40, 2, 32, seed=2).bfloat16(),
        kernels.QuerySegment(0, 40, 7, 26, prompt=True),
    )
    wanted = attended(query, keys, values, segment)
    keys[87:] = values[87:] = math.nan  # torch reads whole blocks, up to here
    reach = kernels.AttentionMetadata([segment], block=16)
    out = kernels.paged_attention(query, keys, values, reach, 0.2)
    assert torch.allclose(out.float(), wanted, atol=2**-8 * 4)


@pytest.mark.parametrize(
    ("width", "dtype", "prompt"),
    [(16, torch.float32, False), (64, torch.bfloat16, False), (64, torch.bfloat16, True)],
)
def test_rows_come_out_the_same_however_many_threads_share_them(
    width: int, dtype: torch.dtype, prompt: bool, compiled: bool
) -> None:
    """The last tasks are cut where they are fewer than the threads."""
    if not compiled:
        return
    keys, values = (random(600, 3, width, seed=seed).to(dtype) for seed in (0, 1))
    query = random(60, 9, width, seed=2).to(dtype)
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 7, 50):
            segments = [
                kernels.QuerySegment(0, count, 9, 500, prompt=prompt),
                kernels.QuerySegment(count, 3, 40, 70),
            ]
            outs = []
            for team in (1, 2, 4, 5):
                torch.set_num_threads(team)
                reach = kernels.AttentionMetadata(segments, block=16)
                outs.append(kernels.paged_attention(query[: count + 3], keys, values, reach, 0.2))
            for out in outs[1:]:
                assert torch.equal(out, outs[0])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("width", "dtype"), [(16, torch.float32), (64, torch.bfloat16)])
def test_a_row_takes_the_same_steps_whatever_runs_beside_it(
    width: int, dtype: torch.dtype, compiled: bool
) -> None:
    keys, values = (random(300, 2, width, seed=seed).to(dtype) for seed in (0, 1))
    query = random(9, 4, width, seed=2).to(dtype)
    (alone,) = kernels.paged_attention(
        query[:1],
        keys,
        values,
        kernels.AttentionMetadata([kernels.QuerySegment(0, 1, 9, 200)], block=16),
        0.3,
    )
    for count in range(2, 9):
        segments = [kernels.QuerySegment(0, count, 9, 200), kernels.QuerySegment(count, 1, 0, 250)]
        out = kernels.paged_attention(
            query[: count + 1], keys, values, kernels.AttentionMetadata(segments, block=16), 0.3
        )
        if compiled:
            assert torch.equal(out[0], alone)
        else:
            assert torch.allclose(out[0], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("outputs", "inputs"), [(16, 32), (80, 64), (192, 576)])
@pytest.mark.parametrize("biased", [False, True])
def test_tiled_products(outputs: int, inputs: int, biased: bool, compiled: bool) -> None:
    weight = random(outputs, inputs).bfloat16()
    tiled = kernels.pack_tiles(weight)
    if tiled is None:
        assert not compiled
        return
    bias = random(outputs, seed=1) if biased else None
    product = kernels.PackedWeight(tiled, bias)
    for count in (1, 15, 16, 17, 32, 33, 70):
        rows = random(count, inputs, seed=2).bfloat16()
        wanted = rows.double() @ weight.double().T + (0 if bias is None else bias)
        got = kernels.linear(rows[None], product)[0]
        assert torch.allclose(got.double(), wanted, rtol=1e-2, atol=1e-3 * inputs)
        assert torch.equal(got[:1], kernels.linear(rows[:1], product))


@pytest.mark.parametrize("biased", [False, True])
def test_the_best_result_is_found_where_rounded_ones_tie(biased: bool) -> None:
    # Results differ by less than bf16 tells apart.
    weight = (random(1040, 64) / 50 + 1).bfloat16()
    weight[[7, 900]] = weight[3].clone()
    tiled = kernels.pack_tiles(weight)
    if tiled is None:
        return
    bias = random(1040, seed=1) / 100 if biased else None
    rows = (random(20, 64, seed=2) / 64 + 0.2).bfloat16()
    product = kernels.PackedWeight(tiled, bias)
    exact = (rows.double()[:, None] * weight.double()).sum(-1) + (0 if bias is None else bias)
    assert kernels.argmax_logits(rows, product).tolist() == exact.argmax(-1).tolist()
    rough = kernels.linear(rows, product)
    assert rough.argmax(-1).tolist() != exact.argmax(-1).tolist()
    rows[4, 3] = math.nan
    assert (kernels.argmax_logits(rows, product) < 0).nonzero().tolist() == [[4]]


def test_weights_that_fill_no_tiles_are_left_to_others() -> None:
    assert kernels.pack_tiles(random(40, 64).bfloat16()) is None
    assert kernels.pack_tiles(random(64, 40).bfloat16()) is None
    assert kernels.pack_tiles(random(64, 64)) is None


def close(got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> bool:
    assert got.dtype == dtype
    return torch.allclose(got.double(), wanted, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5)


def rms_norm(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return rows / (rows.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [20, 48])
def test_sums_norms_and_pairs(width: int, dtype: torch.dtype) -> None:
    base = random(5, 3 * width).to(dtype)[:, width : 2 * width]
    delta, weight = random(5, width, seed=1).to(dtype), random(width, seed=2).abs().to(dtype) + 1
    total, normed = kernels.fused_add_rms_norm(base, delta, weight, 1e-5)
    assert close(total, base.double() + delta.double(), dtype)
    assert close(normed, rms_norm(total.double(), weight.double()), dtype)
    alone = rms_norm(base.double(), weight.double())
    assert close(kernels.rms_norm(base, weight, 1e-5), alone, dtype)
    embedding, tokens = random(30, width, seed=3).to(dtype), torch.tensor([29, 0, 7, 7, 3])
    pair = kernels.embed_and_norm(embedding, tokens, base, weight, 1e-5)
    assert torch.equal(pair[:, :width], embedding[tokens])
    assert close(pair[:, width:], alone, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [6, 16, 64])
def test_rotation_in_place_leaves_other_heads_alone(width: int, dtype: torch.dtype) -> None:
    heads = random(4, 5, width).to(dtype)
    before = heads.double()
    angles = random(90, 1, width // 2, seed=1).repeat(1, 1, 2)
    sign = torch.ones(width)
    sign[: width // 2] = -1
    cosines, sines = angles.cos().to(dtype), (angles.sin() * sign).to(dtype)
    positions = torch.tensor([89, 0, 3, 3])
    kernels.apply_rope(heads[:, :3], cosines, sines, positions)
    assert torch.equal(heads[:, 3:].double(), before[:, 3:])
    swapped = before.roll(width // 2, -1)
    wanted = before * cosines[positions].double() + swapped * sines[positions].double()
    assert torch.allclose(heads[:, :3].double(), wanted[:, :3], atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [20, 48])
def test_gates(width: int, dtype: torch.dtype) -> None:
    both = (random(3, 2 * width) * 20).to(dtype)
    first, second = both.double().chunk(2, -1)
    assert close(kernels.silu_and_mul(both), first * first.sigmoid() * second, dtype)


def test_without_a_compiler_torch_serves_unless_kernels_are_demanded(
    monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(StartError, match=r"no C\+\+ compiler no-such-compiler"):
        kernels.load_kernels("on")
    kernels.load_kernels("auto")
    assert kernels.sample(random(2, 10)).tolist() == random(2, 10).argmax(-1).tolist()


def test_a_compiler_that_fails_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object, compiled: bool
) -> None:
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(StartError, match="--compile: false failed"):
        kernels.load_kernels("on")
