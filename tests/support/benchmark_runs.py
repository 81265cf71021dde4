"""Runs the benchmark as a person would."""

import sys

import pytest

from loadtests.bench import __main__ as bench


async def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    return await bench.main()


async def run_greedy(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    return await run(monkeypatch, *arguments, "--temperature", "0")
