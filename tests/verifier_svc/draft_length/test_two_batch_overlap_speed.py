"""One cohort or two in simulated time: as fast as the better, without ever trying which it is."""

from __future__ import annotations

from itertools import pairwise, product

import pytest

from specwire.messages import DrafterUp
from tests.support.coordinator_fixtures import LINK
from tests.support.coordinator_fixtures import WELCOME as SHARED
from tests.support.overlap_simulation import Turns, World

# Seconds of a step that no row adds to, and of each row.
STEPS = {"rows cost": (0.003, 0.0005), "most is fixed": (0.020, 0.0003), "GPU": (0.030, 0.00002)}
# Of a draft, as a share of half a step.
DRAFTS = (0.25, 0.6, 1.0, 1.6)
COUNTS = (2, 5, 16)


def world_of(steps: str, draft: float, count: int, noise: float, length: int = 3) -> World:
    fixed, row = STEPS[steps]
    seconds = draft * (fixed + row * count * (1 + length) / 2)
    return World(fixed, row, 0.7 * seconds, 0.3 * seconds / length, noise=noise)


def speed(world: World, count: int, always: int | None, fixed: int | None = 3) -> float:
    turns = Turns(world, count, fixed=fixed, always=always)
    turns.run(80)
    return turns.run(150)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("steps", STEPS)
def test_it_is_as_fast_as_the_better_of_one_and_two(steps: str, noise: float) -> None:
    for draft, count in product(DRAFTS, COUNTS):
        world = world_of(steps, draft, count, noise)
        one, two, chosen = (speed(world, count, always) for always in (1, 2, None))
        assert chosen > 0.98 * max(one, two), (draft, count, one, two)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.1])
@pytest.mark.parametrize(("count", "draft"), [(2, 1.0), (4, 0.8), (8, 1.0), (16, 0.6)])
def test_it_is_clearly_faster_than_one_where_that_is_predicted(
    count: int, draft: float, noise: float
) -> None:
    world = world_of("rows cost", draft, count, noise)
    half = world.fixed + world.row * 2 * count
    predicted = (half + world.row * 2 * count + draft * half) / (2 * half)
    assert predicted > 1.1
    ratio = speed(world, count, None) / speed(world, count, 1)
    # Of two times that vary, the longer is longer than the longer mean.
    assert ratio > 1 + (0.7 if noise < 0.1 else 0.6) * (predicted - 1)


@pytest.mark.parametrize("steps", ["rows cost", "most is fixed"])
@pytest.mark.parametrize("draft", [0.3, 0.7])
@pytest.mark.parametrize("count", [2, 6])
def test_lengths_that_are_chosen_are_as_good_as_those_of_the_better(
    steps: str, draft: float, count: int
) -> None:
    world = world_of(steps, draft, count, noise=0.05)
    one, two, chosen = (speed(world, count, always, fixed=None) for always in (1, 2, None))
    assert chosen > 0.98 * max(one, two), (one, two)


@pytest.mark.parametrize("device", ["", "here"])
def test_a_shared_device_means_one_cohort(device: str) -> None:
    turns = Turns(world_of("rows cost", 1.0, 8, 0.05), 8, fixed=3, device=device)
    turns.run(200)
    assert not any(turns.split)


def test_it_changes_rarely_where_two_are_as_good_as_one() -> None:
    world = World(0.020, 0.001, 0.7 * 0.020, 0.1 * 0.020)  # 52 + 20 ms, and 2 * 36
    turns = Turns(world, 8, fixed=3)
    turns.run(500)
    changes = sum(before != after for before, after in pairwise(turns.split))
    assert changes < len(turns.split) / 20


def test_rows_that_were_thought_dear_and_are_not_end_cohorts() -> None:
    world = world_of("GPU", 0.7, 8, 0.05)
    turns = Turns(world, 8, fixed=3)
    turns.policy.step_cost.observe(2, 0.001)
    turns.policy.step_cost.observe(32, 0.030)
    turns.run(20)
    assert turns.split[-1]
    turns.run(800)
    assert turns.share < 0.1


def test_cohorts_follow_the_number_of_sequences() -> None:
    """Alone there is nobody to take turns with, and a few pay less than many."""
    world = World(0.006, 0.001, 0.7 * 0.022, 0.1 * 0.022)
    turns = Turns(world, 8, fixed=3)
    turns.run(100)
    assert turns.share > 0.9
    turns.resize(1)
    turns.run(50)
    assert not any(turns.split[-48:])
    turns.resize(9)
    turns.run(100)
    assert turns.share > 0.9


@pytest.mark.parametrize("speed_up", [0.4, 2.5])
def test_cohorts_follow_a_target_that_changes_its_speed(speed_up: float) -> None:
    world = world_of("rows cost", 1.0, 8, 0.05)
    turns = Turns(world, 8, fixed=3)
    turns.run(100)
    other = World(world.fixed / speed_up, world.row / speed_up, world.draft, world.token)
    turns.world = other
    turns.run(100)
    one, two = (Turns(other, 8, fixed=3, always=always).run(200) for always in (1, 2))
    assert turns.run(200) > 0.97 * max(one, two)


def test_a_drafter_that_comes_back_on_the_targets_device_ends_cohorts() -> None:
    turns = Turns(world_of("rows cost", 1.0, 8, 0.05), 8, fixed=3)
    turns.run(50)
    assert turns.split[-1]
    turns.drafter.answers.clear()
    turns.drafting.receive(DrafterUp(LINK, SHARED), turns.now)
    turns.run(50)
    assert not any(turns.split[-40:])
