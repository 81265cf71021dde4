"""Which verifier holds a session's cache, under which epoch.

The record is in Redis. While Redis is away, the gateway goes by what it saw last.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.backends.backoff import Backoff
from specserve import logs

log = logs.get(__name__)

TIMEOUT = 0.5
PING_INTERVAL = 1.0
REMEMBERED = 10_000

PLACE = Path(__file__).with_name("place.lua").read_text()
# A record that was deleted meanwhile stays deleted.
COUNT = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HINCRBY', KEYS[1], 'turns', 1)
redis.call('HSET', KEYS[1], 'tokens', ARGV[2])
return redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""


@dataclass(frozen=True, slots=True)
class Session:
    """Where a session is. `updated` is in microseconds since 1970.

    `turns` counts the finished ones, `tokens` is the length of the last: prompt and output.
    """

    verifier: str
    epoch: int
    gateway: str
    updated: int
    turns: int = 0
    tokens: int = 0


class SessionStore:
    """The sessions of all gateways, as far as Redis lets this one see them."""

    def __init__(self, url: str, ttl: float, gateway: str) -> None:
        self._redis = redis.asyncio.from_url(
            url,
            decode_responses=True,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            retry=Retry(NoBackoff(), 0),
        )
        self._place = self._redis.register_script(PLACE)
        self._count = self._redis.register_script(COUNT)
        self._ttl_ms = int(ttl * 1000)
        self._gateway = gateway
        self._seen: OrderedDict[str, Session] = OrderedDict()
        self.up = False
        self.ever_up = False

    async def watch(self) -> None:
        """Keep `up` true to life, for ever."""
        backoff = Backoff()
        while True:
            try:
                await self._redis.ping()
            except (RedisError, OSError) as error:
                self._lost(error)
                await backoff.wait()
            else:
                if not self.up:
                    log.info("redis reached")
                self.up = self.ever_up = True
                backoff.reset()
                await asyncio.sleep(PING_INTERVAL)

    async def close(self) -> None:
        await self._redis.aclose()

    async def place(self, session: str, candidates: Sequence[str]) -> Session:
        """Choose one of `candidates` (best first) under a new epoch.

        A session stays where it was if that is still a candidate.
        """
        old = self._remembered(session)
        least = old.epoch + 1 if old is not None else 0
        now = time.time_ns() // 1000
        address, epoch = candidates[0], max(least, now)
        if old is not None and old.verifier in candidates:
            address = old.verifier
        if self.up:
            arguments: list[str | int] = [self._ttl_ms, self._gateway, least, *candidates]
            try:
                address, text = await self._place(keys=[_key(session)], args=arguments)
                epoch = int(text)
            except (RedisError, OSError) as error:
                self._lost(error)
        placed = Session(address, epoch, self._gateway, now)
        if old is not None:
            placed = replace(placed, turns=old.turns, tokens=old.tokens)
        self._remember(session, placed)
        return placed

    async def count(self, session: str, tokens: int) -> None:
        """Note that a turn has ended, of `tokens` prompt and output together."""
        old = self._seen.get(session)
        if old is not None:
            self._seen[session] = replace(old, turns=old.turns + 1, tokens=tokens)
        if self.up:
            try:
                await self._count(keys=[_key(session)], args=(self._ttl_ms, tokens))
            except (RedisError, OSError) as error:
                self._lost(error)

    async def get(self, session: str) -> Session | None:
        if self.up:
            try:
                record = await self._redis.hgetall(_key(session))
                return _read(record) if record else None
            except (RedisError, OSError) as error:
                self._lost(error)
        return self._remembered(session)

    async def delete(self, session: str) -> bool:
        """Forget a session. Return whether there was one."""
        known = self._seen.pop(session, None) is not None
        if self.up:
            try:
                return bool(await self._redis.delete(_key(session)))
            except (RedisError, OSError) as error:
                self._lost(error)
        return known

    def _remembered(self, session: str) -> Session | None:
        record = self._seen.get(session)
        if record is not None and time.time_ns() // 1000 - record.updated > self._ttl_ms * 1000:
            return None
        return record

    def _remember(self, session: str, record: Session) -> None:
        self._seen[session] = record
        self._seen.move_to_end(session)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def _lost(self, error: Exception) -> None:
        if self.up:
            log.warning("redis lost", reason=str(error))
        self.up = False


def document(session_id: str, session: Session) -> dict[str, Any]:
    """Write a session as the API shows it."""
    return {"id": session_id, "object": "session", **asdict(session)}


def _key(session: str) -> str:
    return f"holdcourse:session:{session}"


def _read(record: Mapping[Any, Any]) -> Session:
    return Session(
        record["verifier"],
        int(record["epoch"]),
        record["gateway"],
        int(record["updated"]),
        int(record.get("turns", 0)),
        int(record.get("tokens", 0)),
    )
