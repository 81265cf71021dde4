"""Which sequence holds the longest prefix of a prompt."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from verifier_svc.kv.block_pool import BLOCK_SIZE
from verifier_svc.kv.prefix_tree import PrefixTree

# Few different blocks, so that prefixes meet.
BLOCKS = [tuple(range(i, i + BLOCK_SIZE)) for i in (0, 1)]


def text(choices: list[int], rest: int = 0) -> list[int]:
    return [token for i in choices for token in BLOCKS[i]] + [7] * rest


def test_only_full_blocks_that_were_computed_are_found() -> None:
    prefixes = PrefixTree()
    prefixes.extend(1, "", text([0, 1, 0]), computed=2 * BLOCK_SIZE + 5)
    assert prefixes.length(1) == 2 * BLOCK_SIZE
    assert prefixes.find("", text([0, 1, 0])) == (1, 2 * BLOCK_SIZE)
    assert prefixes.find("", text([0, 1, 0])[:-BLOCK_SIZE]) == (1, 2 * BLOCK_SIZE)
    assert prefixes.find("", text([0], rest=BLOCK_SIZE - 1)) == (1, BLOCK_SIZE)
    assert prefixes.find("", text([1, 0])) is None
    assert prefixes.find("", text([0])[:-1]) is None
    assert prefixes.find("other", text([0, 1])) is None


def test_a_holder_whose_text_others_hold_is_covered() -> None:
    prefixes = PrefixTree()
    prefixes.extend(1, "", text([0]), BLOCK_SIZE)
    assert not prefixes.covered(1)
    prefixes.extend(2, "", text([0, 1]), 2 * BLOCK_SIZE)
    assert prefixes.covered(1)
    assert not prefixes.covered(2)
    assert not prefixes.covered(3)


class Tree(RuleBasedStateMachine):
    """Beside a dictionary of what everybody holds."""

    def __init__(self) -> None:
        super().__init__()
        self.prefixes = PrefixTree()
        self.held: dict[int, tuple[str, list[int]]] = {}

    @rule(
        holder=st.integers(1, 6),
        salt=st.sampled_from(["", "s"]),
        more=st.lists(st.integers(0, 1), max_size=4),
    )
    def extend(self, holder: int, salt: str, more: list[int]) -> None:
        salt, choices = self.held.get(holder, (salt, []))
        choices = choices + more
        self.prefixes.extend(holder, salt, text(choices, 3), len(choices) * BLOCK_SIZE + 3)
        if choices:
            self.held[holder] = salt, choices

    @rule(holder=st.integers(1, 6))
    def drop(self, holder: int) -> None:
        self.prefixes.drop(holder)
        self.held.pop(holder, None)

    @rule(salt=st.sampled_from(["", "s"]), choices=st.lists(st.integers(0, 1), max_size=6))
    def find(self, salt: str, choices: list[int]) -> None:
        def common(holder: int) -> int:
            theirs, their_choices = self.held[holder]
            pairs = zip(choices, their_choices, strict=False)
            same = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
            length = min(len(choices), len(their_choices)) if same is None else same
            return length * BLOCK_SIZE if theirs == salt else 0

        best = max(map(common, self.held), default=0)
        found = self.prefixes.find(salt, text(choices, 5))
        if best:
            assert found is not None
            assert found[1] == best == common(found[0])
        else:
            assert found is None

    @invariant()
    def covers(self) -> None:
        for holder, (salt, choices) in self.held.items():
            others = (item for other, item in self.held.items() if other != holder)
            assert self.prefixes.covered(holder) == any(
                theirs == salt and held[: len(choices)] == choices for theirs, held in others
            )
        for holder in range(1, 7):
            assert (holder in self.prefixes) == (holder in self.held)


TestTree = Tree.TestCase
TestTree.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
