import torch

import speckernels as kernels
from drafter_svc.inference.sampling import noise_of
from specwire.messages import SequenceContext
from specwire.philox import signed64

CPU = torch.device("cpu")


def test_noise_is_keyed_as_the_verifiers_and_flattened_by_the_draft_temperature() -> None:
    openings = [
        SequenceContext(1, 1, seed=2**64 - 1, temperature=0.5),
        SequenceContext(1, 1, choice_index=3),
    ]
    noise = noise_of(openings, [9, 70000], 0.7, CPU)
    assert noise is not None
    assert noise.seeds.tolist() == [signed64(2**64 - 1), signed64(openings[1].seed)]
    assert noise.positions.tolist() == [9, 70000]
    assert noise.choices.tolist() == [0, 3]
    wanted = torch.tensor([0.5 * 0.7, openings[1].temperature * 0.7])
    assert torch.equal(noise.temperatures, wanted)


def test_greedy_rows_alone_need_no_noise() -> None:
    assert noise_of([SequenceContext(1, 1, temperature=0.0)] * 2, [1, 2], 1.0, CPU) is None


def test_a_banned_token_is_never_drawn() -> None:
    logits = torch.full((300, 8), float("-inf"))
    logits[:, [2, 5]] = 0.0
    openings = [SequenceContext(1, 1, seed=seed, temperature=1.0) for seed in range(300)]
    noise = noise_of(openings, [1] * 300, 1.0, CPU)
    assert set(kernels.sample(logits, noise, torch.arange(8)).tolist()) == {2, 5}
