"""Settings of the gateway."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from specserve.settings import Address, Settings, Size, check, setting


def _split(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _distinct(addresses: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(addresses)) != len(addresses):
        raise ValueError("must not name an address twice")
    return addresses


def _is_redis(url: str) -> str:
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must be a redis://, rediss:// or unix:// URL")
    return url


Addresses = Annotated[
    tuple[Address, ...], Field(min_length=1), AfterValidator(_distinct), BeforeValidator(_split)
]
Keys = Annotated[tuple[str, ...], BeforeValidator(_split)]
RedisUrl = Annotated[str, AfterValidator(_is_redis)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class GatewaySettings(Settings):
    """Serve OpenAI's API in front of verifiers: python -m gateway."""

    host: str = setting("127.0.0.1", "Address to listen on.", min_length=1)
    port: int = setting(8000, "Port to listen on; 0 takes a free one.", ge=0, le=65_535)
    verifiers: Addresses = setting("127.0.0.1:50051", "HOST:PORT[,HOST:PORT...] of verifiers.")
    redis_url: RedisUrl = setting(
        "redis://127.0.0.1:6379/0", "Where sessions and their epochs are kept."
    )
    api_keys: Keys = setting("", "KEY[,KEY...] that clients may present; none is open to all.")
    max_body_size: Size = setting("4MiB", "Largest request body.", ge=1024)
    max_concurrent_requests: int = setting(
        128, "Choices generated or queued at once; more are answered with 429.", ge=1
    )
    session_ttl_s: Seconds = setting(3600.0, "Seconds that an idle session is remembered.")
    request_timeout_s: Seconds = setting(600.0, "Seconds that a request may take.")
    keep_alive_s: Seconds = setting(
        10.0, "Seconds without a token after which a stream gets a comment."
    )
    failover_timeout_s: Seconds = setting(
        120.0, "Seconds that a running generation waits for a verifier to take it over."
    )
    drain_grace_s: Seconds = setting(30.0, "Seconds that running requests get on SIGTERM.")
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "Least severe level that is logged."
    )


if __name__ == "__main__":
    sys.exit(check("gateway", GatewaySettings))
