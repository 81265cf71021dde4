import numpy as np
import torch

from drafter_svc.drawing import CANDIDATES, DraftVocabulary, _exponentials, draw
from specwire.draft import Opening
from specwire.noise import signed64
from specwire.torch import exponentials


def test_noise_equals_that_of_the_verifier() -> None:
    ids = np.arange(1000)[None] * 37
    seeds = np.array([[signed64(2**64 - 1)], [12345]])
    positions, choices = np.array([[9], [70000]]), np.array([[0], [3]])
    ours = torch.from_numpy(_exponentials(seeds, positions, ids, choices))
    theirs = exponentials(*(torch.from_numpy(a) for a in (seeds, positions, ids, choices)))
    assert torch.allclose(ours, theirs, rtol=1e-14, atol=0)


def test_only_the_likeliest_candidates_are_drawn() -> None:
    size = 4 * CANDIDATES
    vocabulary = DraftVocabulary(torch.arange(size) * 2, 2 * size)
    torch.manual_seed(0)
    logits = torch.randn(1, size).expand(500, size)
    openings = [Opening(1, 1, seed=seed, temperature=3.0) for seed in range(500)]
    drawn = draw(logits, openings, [5] * 500, vocabulary, 1.0)
    likeliest = set(logits[0].topk(CANDIDATES).indices.tolist())
    assert set(drawn.tolist()) <= likeliest
    assert len(set(drawn.tolist())) > CANDIDATES // 2


def test_a_banned_token_is_never_drawn() -> None:
    vocabulary = DraftVocabulary(torch.arange(8), 8)
    logits = torch.full((300, 8), float("-inf"))
    logits[:, [2, 5]] = 0.0
    openings = [Opening(1, 1, seed=seed, temperature=1.0) for seed in range(300)]
    assert set(draw(logits, openings, [1] * 300, vocabulary, 1.0).tolist()) == {2, 5}
