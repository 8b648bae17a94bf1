"""The `nccl` of job.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field

from supervisor.core.setting import about


@dataclass(frozen=True, slots=True, kw_only=True)
class Nccl:
    """What NCCL is, and what a mistake in its variables costs."""

    release: str = field(
        default="",
        metadata=about(
            "The trainer's NCCL, as 2.28.3: rules about releases need it.",
            pattern=r"(\d+\.\d+(\.\d+)?)?",
            valid="a release, as 2.28.3",
            default="not said: rules about releases keep quiet",
        ),
    )
    lint: str = field(
        default="refuse",
        metadata=about(
            "What errors in NCCL's variables (`superv nccl lint`) do to a person's launch: refuse "
            "it, tell of them, or nothing (off). Restarts by superv itself are never stopped.",
            choices=("refuse", "tell", "off"),
        ),
    )
