"""How patient superv is: the limits and budgets that decisions use. Every key has a default."""

from __future__ import annotations

from dataclasses import dataclass, field

from supervisor.core.setting import about

_DAY_S = 86_400

# Keys that were called otherwise before: journals keep the old name, job files may.
RENAMED = {
    "gather_s": "spare_wait_s",
    "gather_limit_s": "registration_timeout_s",
    "start_limit_s": "first_step_timeout_s",
    "hang_floor_s": "hang_timeout_min_s",
    "silent_s": "heartbeat_timeout_s",
    "orphan_s": "engine_lost_timeout_s",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The `policy` of job.yaml. All times are in seconds."""

    restarts_without_progress: int = field(
        default=3,
        metadata=about(
            "Restarts for one cause without new verified progress in between; then the run is "
            "HELD. Where nodes or Slurm are the cause, and the run has trained before, it goes on "
            "after longer and longer pauses instead.",
            ge=0,
            le=1000,
        ),
    )
    stop_grace_s: float = field(
        default=10.0,
        metadata=about("Time between SIGTERM and SIGKILL for ranks.", unit="s", ge=0, le=3600),
    )
    spare_wait_s: float = field(
        default=30.0,
        metadata=about(
            "How long to wait for the spares once enough agents for every slot have registered.",
            unit="s",
            ge=0,
            le=3600,
        ),
    )
    registration_timeout_s: float = field(
        default=600.0,
        metadata=about(
            "How long to wait for enough agents for every slot, from the grant of the allocation, "
            "and again whenever no spare is left.",
            unit="s",
            ge=1,
            le=_DAY_S,
        ),
    )
    first_step_timeout_s: float = field(
        default=1800.0,
        metadata=about(
            "How long started ranks may take to the first step; import, build, load and compile "
            "included. Up to three times as long while a node of theirs is silent.",
            unit="s",
            ge=1,
            le=_DAY_S,
        ),
    )
    last_ranks_timeout_s: float = field(
        default=300.0,
        metadata=about(
            "Once the first rank has ended with code 0 the others have so long to end too, and up "
            "to three times as long while steps go on or a node is silent; then the attempt has "
            "ended early, and all ranks are started again.",
            unit="s",
            ge=1,
            le=_DAY_S,
        ),
    )
    hang_timeout_min_s: float = field(
        default=300.0,
        metadata=about(
            "Ranks are never taken to hang sooner than this after the last step.",
            unit="s",
            ge=1,
            le=_DAY_S,
        ),
    )
    hang_factor: float = field(
        default=4.0,
        metadata=about(
            "Ranks are taken to hang when no step came for this many times the job's own median "
            "interval between reported steps, and never sooner than hang_timeout_min_s or twice "
            "the longest interval that is usual; while a hook tells of a save, than this many "
            "times the median save, or first_step_timeout_s where none was seen yet.",
            ge=1.5,
            le=1000,
        ),
    )
    heartbeat_timeout_s: float = field(
        default=2.5,
        metadata=about(
            "An agent that was not heard for so long is suspect; agents send a heartbeat a second. "
            "Silence alone stops nothing: a second witness is needed.",
            unit="s",
            ge=1.5,
            le=600,
        ),
    )
    engine_lost_timeout_s: float = field(
        default=900.0,
        metadata=about(
            "An agent that has had no engine and whose ranks made no step for so long stops them.",
            unit="s",
            ge=10,
            le=7 * _DAY_S,
        ),
    )
    backoff_s: tuple[float, ...] = field(
        default=(0.0, 5.0, 30.0),
        metadata=about(
            "Pause before the first, second, … restart on the same nodes without progress; the "
            "last one repeats. A swap does not wait.",
            unit="s",
            ge=0,
            le=_DAY_S,
            nonempty=True,
        ),
    )
