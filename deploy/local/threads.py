"""How OpenMP threads of the services wait, decided in this one place.

Verifier and drafter take turns on the same cores. A team of threads that spins while it waits
for work takes the cores from the other process, so both block after a short spin. Variables that
are already in the environment win.
"""

from collections.abc import Mapping

WAITING = {
    # libgomp, which torch's wheels carry. Spins are some nanoseconds each; the policy alone decides
    # how many are left where a process has more threads than there are cores: 1000, not 0.
    "GOMP_SPINCOUNT": "10000",
    "OMP_WAIT_POLICY": "ACTIVE",
    "KMP_BLOCKTIME": "0",  # libomp and Intel's, in milliseconds
}


def with_waiting(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that runs torch."""
    return {**WAITING, **environment}
