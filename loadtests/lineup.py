"""The arms of a benchmark, started one after the other before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from loadtests.arms import (
    PEERS,
    SPECULATIVE,
    TRANSFORMERS,
    VLLM_EAGLE3,
    Arm,
    PeerArm,
    RestArm,
    Sampling,
    Task,
)
from loadtests.bench_settings import BenchSettings
from loadtests.client import Client, Served
from loadtests.export import cache_folder, hugging_face
from loadtests.peer import Engine, Peer
from loadtests.vllm_peer import VllmPeer, engine_arguments
from specwire.settings import StartError


@dataclass(slots=True)
class Lineup:
    """Arms in the order in which they first take turns, and what the peers say of themselves."""

    arms: list[Arm] = field(default_factory=list)
    peers: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    async def start(
        cls,
        stack: AsyncExitStack,
        settings: BenchSettings,
        client: Client,
        served: Served,
        tasks: Sequence[Task],
    ) -> Lineup:
        """Start all that `settings` name; `stack` ends their processes.

        Raises:
            StartError: a peer cannot be started, or an arm has not the model that is served.
        """
        lineup = cls()
        sampling = Sampling(settings.max_tokens, settings.temperature)
        longest = max(len(task.tokens) for task in tasks) + sampling.max_tokens
        # Before the engines, whose start takes long.
        others: list[Arm] = []
        for name, url in settings.also.items():
            other = await stack.enter_async_context(Client(url, settings.api_key))
            await _check(name, url, other, served)
            others.append(RestArm(name, other, sampling, True))
        for name in settings.arms:
            if name not in PEERS:
                lineup.arms.append(RestArm(name, client, sampling, name == SPECULATIVE))
                continue
            peer: Engine
            if name == TRANSFORMERS:
                peer = await _transformers(stack, settings, served)
            else:
                peer = await _vllm(stack, settings, name, served, longest)
            lineup.arms.append(PeerArm(name, peer, sampling))
            lineup.peers[name] = peer.facts
        lineup.arms += others
        return lineup


async def _check(name: str, url: str, client: Client, served: Served) -> None:
    other = await client.served()
    if (other.fingerprint, other.dtype) != (served.fingerprint, served.dtype):
        raise StartError(
            f"--also {name}: {url} serves {other.name} in {other.dtype}, "
            f"which is not {served.name} in {served.dtype}."
        )


async def _transformers(stack: AsyncExitStack, settings: BenchSettings, served: Served) -> Peer:
    assert settings.peer_target is not None
    peer = await stack.enter_async_context(Peer.running(settings.peer_target, served.dtype))
    peer.check(settings.peer_target, served)
    return peer


async def _vllm(
    stack: AsyncExitStack, settings: BenchSettings, name: str, served: Served, longest: int
) -> VllmPeer:
    assert settings.peer_target is not None
    assert settings.vllm_python is not None
    drafter = settings.drafter if name == VLLM_EAGLE3 else None
    if drafter is not None:
        drafter.check(served)
    arguments = engine_arguments(
        await hugging_face(settings.peer_target, served, cache_folder()),
        served.dtype,
        sequences=max(settings.concurrency),
        longest=longest,
        eager=settings.vllm_eager,
        drafter=drafter,
    )
    running = VllmPeer.running(name, settings.vllm_python, arguments)
    return await stack.enter_async_context(running)
