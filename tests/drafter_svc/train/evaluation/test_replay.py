"""Offline speculation: chains that read their own proposals, and the rounds through a text."""

import torch
from torch import nn

from drafter_svc.train.evaluation.replay import Rounds, draft_chains, lookups, walk
from tests.drafter_svc.train.objective.test_ttt import OneChain
from tests.support.tiny_drafter import tiny_config, tiny_drafter


def test_each_chain_reads_its_own_proposals() -> None:
    drafter, table = tiny_drafter(tiny_config()), nn.Embedding(64, 16)
    draft_ids = torch.arange(40) + 20
    torch.manual_seed(1)
    ids, features = torch.randint(0, 64, (10,)), torch.randn(10, 48)
    columns = torch.arange(3, 9)
    proposals = draft_chains(drafter, table, draft_ids, ids, features, columns=columns, length=4)
    assert proposals.shape == (6, 4)
    with torch.no_grad():
        for row, column in enumerate(columns.tolist()):
            attend, real = OneChain(), torch.arange(column + 1)
            state = drafter.fuse(features[real])
            hidden = drafter.layer(table(ids[real + 1]), state, real, attend)[-1:]
            for step in range(4):
                token = draft_ids[drafter.logits(hidden).argmax(-1)]
                assert int(proposals[row, step]) == int(token)
                position = torch.tensor([column + step + 1])
                hidden = drafter.layer(table(token), drafter.recycle(hidden), position, attend)


def test_a_round_accepts_up_to_the_first_mismatch_and_adds_the_bonus() -> None:
    # Prompt 0 1 2; the target writes 3 (from the prompt), then 4 5 6 7 8 9.
    ids, prompt = list(range(10)), 3
    proposals = [[99, 99]] * 7
    proposals[0] = [4, 99]  # after 3: one accepted, 5 is the bonus
    proposals[2] = [6, 7]  # after 5: both accepted, 8 is the bonus
    rounds = Rounds(2)
    walk(rounds, ids, prompt, proposals)
    assert rounds.accepted == [1, 2]  # after 8 only one token is left: no full round
    assert rounds.acceptance_length == 2.5
    assert rounds.per_position == [1.0, 0.5]


def test_nothing_accepted_is_plain_decoding() -> None:
    rounds = Rounds(3)
    walk(rounds, list(range(20)), 5, [[99] * 3] * 15)
    assert rounds.acceptance_length == 1.0
    assert len(rounds.accepted) == 12


def test_loops_are_told_apart() -> None:
    fresh, repeated = list(range(10)), [50, 51] * 12
    ids = [*fresh, *repeated]
    proposals = [[ids[i + 2]] if i + 2 < len(ids) else [0] for i in range(1, len(ids))]
    rounds = Rounds(1)
    walk(rounds, ids, 2, proposals)
    # The 8-gram of 50 51 .. is complete after 8 of its tokens and repeats from the 10th on.
    own = rounds.without_loops()
    assert rounds.acceptance_length == own.acceptance_length == 2.0
    assert len(own.accepted) == sum(position < 19 for position in range(3, len(ids) - 1, 2))


def test_lookups_know_the_tokens_that_are_committed_and_no_others() -> None:
    ids = [5, 1, 2, 3, 9, 1, 2, 3, 8, 1]
    found = lookups(ids, 4, shortest=2, length=3)
    # One for each answer token, drafted with that token committed.
    assert found == [(), (), (3, 9, 1), (9, 1, 2), (), ()]


def test_a_lookup_takes_the_place_of_the_chain_where_it_finds_something() -> None:
    ids, prompt = list(range(10)), 3
    chains = [[99, 99]] * 7
    chains[0] = [4, 99]
    found: list[tuple[int, ...]] = [()] * 7
    found[0] = (99,)
    found[1] = (5, 6, 7)
    rounds = Rounds(3)
    walk(rounds, ids, prompt, chains, found)
    # After 3 the lookup is wrong although the chain is right; after 4 it is right three times.
    assert rounds.accepted == [0, 3]
    assert rounds.looked_up == [True, True]
    both = Rounds(2)
    walk(both, ids, prompt, chains, [(), (), found[1], *found[3:]])
    assert both.accepted == [1, 0, 0, 0]
    assert both.looked_up == [False, True, False, False]
    assert both.by_lookup(True).accepted == [0]
    assert both.by_lookup(False).acceptance_length == 1 + 1 / 3
    assert both.per_position == [0.25, 0.0]


def test_no_rounds_is_not_an_error() -> None:
    assert Rounds(2).acceptance_length == 1.0
    assert Rounds(2).per_position == [0.0, 0.0]
