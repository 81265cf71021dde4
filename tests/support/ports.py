"""Loopback addresses."""

import os
import socket
from itertools import count

# Below the ports that Linux gives out by itself: a service that is started again finds its own
# still free. Test processes count through parts, of which two rarely share one.
_FIRST, _PART, _PARTS = 12_000, 500, 40
_steps = count()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on; this process is given it once in a while."""
    start = _FIRST + _PART * (os.getpid() % _PARTS)
    for step in _steps:
        port = start + step % _PART
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("unreachable: the count never ends")
