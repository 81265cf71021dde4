"""Which sequence holds the longest prefix of a prompt. Pure: numbers only."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from verifier_svc.kv.block_pool import BLOCK_SIZE

_Key = str | tuple[int, ...]


@dataclass(slots=True, eq=False)
class _Node:
    """A full block of tokens after the blocks above it, and who holds it, the latest last."""

    key: _Key
    parent: _Node | None = None
    children: dict[_Key, _Node] = field(default_factory=dict)
    holders: dict[int, None] = field(default_factory=dict)


class PrefixTree:
    """A tree over the full blocks of all sequences whose KV is there.

    Prompts of different salts share nothing, so that nobody learns from the time of an answer
    what others have asked.
    """

    def __init__(self) -> None:
        self._root = _Node("")
        self._last: dict[int, _Node] = {}
        self._blocks: dict[int, int] = {}

    def __contains__(self, holder: int) -> bool:
        return holder in self._last

    def length(self, holder: int) -> int:
        """Tokens that are known of a holder."""
        return self._blocks.get(holder, 0) * BLOCK_SIZE

    def extend(self, holder: int, salt: str, tokens: Items[int], computed: int) -> None:
        """The KV of a holder's positions [0, computed) is there, and stays until `drop`."""
        known = self._blocks.get(holder, 0)
        if computed // BLOCK_SIZE <= known:
            return
        node = self._last.get(holder) or self._child(self._root, salt, holder)
        for block in range(known, computed // BLOCK_SIZE):
            key = tuple(tokens[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE])
            node = self._child(node, key, holder)
        self._last[holder] = node
        self._blocks[holder] = computed // BLOCK_SIZE

    def find(self, salt: str, tokens: Items[int]) -> tuple[int, int] | None:
        """(holder, length) of the longest prefix of `tokens`, whole blocks; None for none."""
        node, length = self._root.children.get(salt), 0
        while node is not None:
            key = tuple(tokens[length : length + BLOCK_SIZE])
            below = node.children.get(key) if len(key) == BLOCK_SIZE else None
            if below is None:
                return (next(reversed(node.holders)), length) if length else None
            node, length = below, length + BLOCK_SIZE
        return None

    def covered(self, holder: int) -> bool:
        """Whether somebody else holds all that `holder` does."""
        return holder in self._last and len(self._last[holder].holders) > 1

    def drop(self, holder: int) -> None:
        """A holder's KV goes away; dropping an unknown one is no error."""
        node = self._last.pop(holder, None)
        self._blocks.pop(holder, None)
        while node is not None and node.parent is not None:
            del node.holders[holder]
            if not node.holders:
                del node.parent.children[node.key]
            node = node.parent

    @staticmethod
    def _child(node: _Node, key: _Key, holder: int) -> _Node:
        child = node.children.get(key)
        if child is None:
            child = node.children[key] = _Node(key, node)
        child.holders[holder] = None
        return child
