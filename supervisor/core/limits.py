"""Resource limits of a process, judged."""

from __future__ import annotations

import math

MEMLOCK_FIX = (
    "LimitMEMLOCK=infinity in slurmd's unit (systemctl edit slurmd), then restart it; and in "
    "slurm.conf PropagateResourceLimitsExcept=MEMLOCK"
)


def memlock_problem(who: str, limit: float, *, rdma: bool) -> str:
    """What is wrong with a limit on locked memory (bytes, math.inf: none); empty where nothing is.

    RDMA registers, and so locks, as much memory as a job transfers through: any limit is too low
    (`ibv_reg_mr failed`). Sources: NCCL User Guide (Troubleshooting), Slurm FAQ (memlock).
    """
    if not rdma or limit == math.inf:
        return ""
    return f"{who} may lock {limit / 2**20:.3g} MiB of memory"
