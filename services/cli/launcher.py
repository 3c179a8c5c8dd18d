"""Starts a program that dies with its parent: `python -I -S launcher.py PARENT_PID PROGRAM ARGUMENTS...`.

A supervisor that is killed can't stop its children; they would keep its ports. Linux sends a process SIGKILL at
its parent's death when it has asked so, and remembers it across `exec`. Asked here, between fork and exec of the
program, instead of in a `preexec_fn`, which is unsafe in a process with threads (gRPC has some). On other systems
the program is just started.

Runs without the package being importable; needs the standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the program."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # A connection is a file descriptor: an edge may have as many as the system allows, not the usual 1,024.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)
    try:
        os.execv(program[0], program)  # noqa: S606 - no shell is wanted; the supervisor names the program
    except OSError as error:
        sys.exit(f"can't start {program[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
