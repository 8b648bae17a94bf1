"""How patient superv is: the limits and budgets that decisions use. Every key has a default."""

from __future__ import annotations

from dataclasses import dataclass, field

from supervisor.core.setting import about

_DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The `policy` of job.yaml. All times are in seconds."""

    restarts_without_progress: int = field(
        default=3,
        metadata=about(
            "Restarts for one cause without new verified progress in between; then the run is "
            "HELD.",
            least=0,
            most=1000,
        ),
    )
    stop_grace_s: float = field(
        default=10.0,
        metadata=about("Time between SIGTERM and SIGKILL for ranks.", unit="s", least=0, most=3600),
    )
    gather_s: float = field(
        default=30.0,
        metadata=about(
            "How long to wait for the spares once enough agents for every slot have registered.",
            unit="s",
            least=0,
            most=3600,
        ),
    )
    gather_limit_s: float = field(
        default=600.0,
        metadata=about(
            "How long to wait for enough agents for every slot, from the grant of the allocation, "
            "and again whenever no spare is left.",
            unit="s",
            least=1,
            most=_DAY_S,
        ),
    )
    start_limit_s: float = field(
        default=1800.0,
        metadata=about(
            "How long started ranks may take to the first step; import, build, load and compile "
            "included.",
            unit="s",
            least=1,
            most=_DAY_S,
        ),
    )
    hang_floor_s: float = field(
        default=300.0,
        metadata=about(
            "Ranks are never taken to hang sooner than this after the last step.",
            unit="s",
            least=1,
            most=_DAY_S,
        ),
    )
    hang_factor: float = field(
        default=4.0,
        metadata=about(
            "Ranks are taken to hang when no step came for this many times the job's own median "
            "interval between reported steps, and never sooner than hang_floor_s or twice the "
            "longest interval seen.",
            least=1.5,
            most=1000,
        ),
    )
    silent_s: float = field(
        default=2.5,
        metadata=about(
            "An agent that was not heard for so long is suspect; agents beat once a second. "
            "Silence alone stops nothing: a second witness is needed.",
            unit="s",
            least=1.5,
            most=600,
        ),
    )
    orphan_s: float = field(
        default=900.0,
        metadata=about(
            "An agent that has had no engine and whose ranks made no step for so long stops them.",
            unit="s",
            least=10,
            most=7 * _DAY_S,
        ),
    )
    backoff_s: tuple[float, ...] = field(
        default=(0.0, 5.0, 30.0),
        metadata=about(
            "Pause before the first, second, … restart on the same nodes without progress; the "
            "last one repeats. A swap does not wait.",
            unit="s",
            least=0,
            most=_DAY_S,
            nonempty=True,
        ),
    )
