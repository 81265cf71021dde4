"""The parts of a run, in order. Each is a module here whose `run` takes a bench and findings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """A module of a package, what it is about, and how long it may take on a GPU, in seconds."""

    name: str
    about: str
    limit: float
    package: str = __name__

    @property
    def module(self) -> str:
        """The full name of its module."""
        return f"{self.package}.{self.name}"


#: Without the first one the others mean nothing; the last one is only for a given target.
PARTS = (
    Part("versions", "versions and memory", 60),
    Part("attention", "attention beside plain attention", 60),
    Part("recorder", "recorded work", 45),
    Part("decoder", "two layers through Target", 45),
    Part("forward", "the target's forward", 90),
    Part("draws", "head and draws", 90),
    Part("chain", "the drafter's step", 75),
    Part("capacity", "loadtests.capacity", 200),
    Part("texts", "text with and without drafts", 60),
    Part("memory", "memory at the end", 20),
)
SERVED = Part("served", "the given target", 60)
