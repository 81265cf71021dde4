"""The arms of a measurement, started one after the other before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from loadtests.common.client import Client, Served
from loadtests.peers.arms import (
    LLAMA,
    PEERS,
    SPECULATIVE,
    TRANSFORMERS,
    TRANSFORMERS_FP32,
    VLLM_EAGLE3,
    Arm,
    PeerArm,
    RestArm,
)
from loadtests.peers.hf_export import cache_folder, hugging_face, prove
from loadtests.peers.llama_peer import LlamaPeer, model_arguments
from loadtests.peers.settings import PeerSettings
from loadtests.peers.transformers_peer import Engine, TransformersPeer
from loadtests.peers.vllm_peer import VllmPeer, engine_arguments
from specserve.settings import StartError


@dataclass(slots=True)
class StartedArms:
    """Arms in the order in which they first take turns, and what the peers say of themselves."""

    arms: list[Arm] = field(default_factory=list)
    peers: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    async def start(
        cls,
        stack: AsyncExitStack,
        settings: PeerSettings,
        client: Client,
        served: Served,
        *,
        sequences: int,
        longest: int,
    ) -> StartedArms:
        """Start all that `settings` name; `stack` ends their processes.

        There will be `sequences` requests at once at most, of `longest` tokens with their output.

        Raises:
            StartError: a peer cannot be started, or has not the model that is served.
        """
        lineup = cls()
        for name in settings.arms:
            if name not in PEERS:
                lineup.arms.append(RestArm(name, client, name == SPECULATIVE))
                continue
            peer: Engine
            if name in (TRANSFORMERS, TRANSFORMERS_FP32):
                peer = await _transformers(stack, settings, name, served)
            elif name == LLAMA:
                peer = await _llama(stack, settings, served, longest)
            else:
                peer = await _vllm(stack, settings, name, served, sequences, longest)
            lineup.arms.append(PeerArm(name, peer))
            lineup.peers[name] = peer.facts
        return lineup


async def other_stacks(
    stack: AsyncExitStack, also: Mapping[str, str], api_key: str | None, served: Served
) -> list[Arm]:
    """Arms that ask further gateways, by name and URL, with speculation.

    Raises:
        StartError: one serves something else, or does not answer.
    """
    arms: list[Arm] = []
    for name, url in also.items():
        client = await stack.enter_async_context(Client(url, api_key))
        other = await client.served()
        if (other.fingerprint, other.dtype) != (served.fingerprint, served.dtype):
            raise StartError(
                f"--also {name}: {url} serves {other.name} in {other.dtype}, "
                f"which is not {served.name} in {served.dtype}."
            )
        arms.append(RestArm(name, client, True))
    return arms


def _dtype(name: str, served: Served) -> str:
    """That of a peer: float32 where its name says so, else what is served."""
    return "float32" if name.endswith("-fp32") else served.dtype


async def _transformers(
    stack: AsyncExitStack, settings: PeerSettings, name: str, served: Served
) -> TransformersPeer:
    assert settings.peer_target is not None
    running = TransformersPeer.running(
        settings.peer_target, _dtype(name, served), settings.peer_environment
    )
    peer = await stack.enter_async_context(running)
    peer.check(settings.peer_target, served)
    return peer


async def _vllm(
    stack: AsyncExitStack,
    settings: PeerSettings,
    name: str,
    served: Served,
    sequences: int,
    longest: int,
) -> VllmPeer:
    assert settings.peer_target is not None
    assert settings.vllm_python is not None
    drafter = settings.drafter if name == VLLM_EAGLE3 else None
    if drafter is not None:
        drafter.check(served)
    dtype = _dtype(name, served)
    arguments = engine_arguments(
        await hugging_face(settings.peer_target, served, dtype, cache_folder()),
        dtype,
        sequences=sequences,
        longest=longest,
        eager=settings.vllm_eager,
        drafter=drafter,
    )
    running = VllmPeer.running(name, settings.vllm_python, arguments, settings.peer_environment)
    return await stack.enter_async_context(running)


async def _llama(
    stack: AsyncExitStack, settings: PeerSettings, served: Served, longest: int
) -> LlamaPeer:
    assert settings.peer_target is not None
    assert settings.llama_python is not None
    arguments = model_arguments(settings.peer_target, longest=longest)
    await prove(settings.peer_target, served)
    running = LlamaPeer.running(LLAMA, settings.llama_python, arguments, settings.peer_environment)
    return await stack.enter_async_context(running)
