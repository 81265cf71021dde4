"""Where OpenMP threads of the services run and how they wait, decided in this one place.

Variables that are already in the environment win.
"""

from collections.abc import Mapping

# Verifier and drafter take turns on the same cores. A team of threads that spins while it waits
# for work takes the cores from the other process, so both block after a short spin.
WAITING = {
    # libgomp, which torch's wheels carry. Spins are some nanoseconds each; the policy alone decides
    # how many are left where a process has more threads than there are cores: 1000, not 0.
    "GOMP_SPINCOUNT": "10000",
    "OMP_WAIT_POLICY": "ACTIVE",
    "KMP_BLOCKTIME": "0",  # libomp and Intel's, in milliseconds
}
# Each thread of a team stays on its core. A short task that wakes up on one of them otherwise makes
# Linux put two threads on one core now and then, for a whole step: all of the team waits for them.
BINDING = {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}


def with_threads(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that runs torch.

    Teams that do not take all cores stay free: they would all be bound to the same ones.
    """
    binding = {} if "OMP_NUM_THREADS" in environment else BINDING
    return {**WAITING, **binding, **environment}
