"""What limits acceptance, on a text that is known token by token."""

import io

import pytest
import torch

from drafter_svc.train.evaluation.acceptance_limits import (
    Limits,
    RoundCosts,
    limits_summary,
    print_limits,
)

IDS = [1, 2, *range(10, 40)]


def limits() -> Limits:
    """Every chain has its first three drafts right; two of three answer ids can be drafted."""
    found = Limits()
    right = [[IDS[min(31, i + 2 + j)] if j < 3 else 0 for j in range(8)] for i in range(1, 31)]
    # The distribution of each answer token: probabilities .75 and .25 over two ids.
    final = torch.zeros(len(IDS), 1)
    final[1:-1] = 1
    head = torch.tensor([[0.0], [float(torch.tensor(3.0).log())]])
    found.add(IDS, 2, final=final, head=head, draft_ids=torch.arange(20, 40), chains=right)
    return found


def test_shares_are_of_answer_tokens() -> None:
    shares = limits().shares
    assert shares["target_top_probability"] == pytest.approx(0.75)
    assert shares["coverage"] == pytest.approx(20 / 30)
    assert shares["rounds_in_loops"] == 0


def test_longer_chains_are_accepted_as_far_as_they_are_right() -> None:
    assert limits().acceptance_lengths == [2, 3, 4, 4, 4, 4, 4, 4]


def test_the_best_draft_length_is_that_of_most_tokens_per_second() -> None:
    # Rounds of 10 + 2 k: 2 / 12, 3 / 14, 4 / 16, 4 / 18.
    found = limits_summary(limits(), RoundCosts(10, 1.5, 0.5))
    assert found["best_draft_length"] == 3
    speed_ups = found["speed_up_by_draft_length"]
    assert isinstance(speed_ups, list)
    assert speed_ups[:4] == [1.667, 2.143, 2.5, 2.222]
    assert limits_summary(limits(), RoundCosts(10, 15, 1))["best_draft_length"] == 0
    assert "best_draft_length" not in limits_summary(limits(), None)


def test_the_mean_is_over_files() -> None:
    other = limits()
    other.certainty = 0.25 * other.tokens
    out = io.StringIO()
    print_limits({"a": limits(), "b": other}, RoundCosts(10, 1.5, 0.5), out)
    assert "target_top_probability 0.500, coverage 0.667" in out.getvalue()
    assert "best draft length: 3" in out.getvalue()
