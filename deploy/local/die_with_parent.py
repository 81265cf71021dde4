"""Runs a command that does not outlive the process that started it (Linux).

    python die_with_parent.py PARENT_PID SIGNAL COMMAND [ARGUMENT...]

The kernel sends SIGNAL to the command when its parent dies, even if that was by SIGKILL. The
setting survives execve, so the command needs to know nothing about it. Only the death of the
parent's *thread* that started it counts (prctl(2)): start leashed commands on a main thread.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Becomes the command; does not return."""
    parent, name, *command = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.Signals[f"SIG{name}"]), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != int(parent):  # it died before the line above
        raise SystemExit(f"the parent process {parent} is gone")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise SystemExit(f"{command[0]} cannot be run: {error.strerror}") from None


if __name__ == "__main__":
    main()
