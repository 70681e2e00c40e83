"""How the threads of OpenMP, which torch uses, wait for work."""

from __future__ import annotations

import os
import sys

# By default a thread of GCC's OpenMP spins for milliseconds after each piece of work, one of LLVM's for 200: on a
# machine with other processes it uses up time that the threads with work would need.
POLICY = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "0"}
CHOICES = ("OMP_WAIT_POLICY", *POLICY)


def set_wait_policy() -> None:
    """Let threads of OpenMP that wait sleep soon, unless the environment has a policy.

    Without effect once torch is imported: OpenMP reads the environment when it is loaded.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in CHOICES):
        os.environ.update(POLICY)
