"""The `preflight` of job.yaml: which health checks run before ranks and beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from supervisor.config.site import read_settings
from supervisor.core.setting import about


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What agents look at on their nodes."""

    tags: tuple[str, ...] = field(
        default=("preflight",),
        metadata=about(
            "The suites of health checks that a node passes before it takes a slot, and that "
            "spares pass again and again; an empty list turns that off.",
        ),
    )
    running_s: float = field(
        default=60.0,
        metadata=about(
            "How often the `running` suite runs beside the ranks; spares pass their suites every "
            "fifth time. 0: never; a node that did not pass is looked at every minute then.",
            unit="s",
            ge=0,
            le=86_400,
        ),
    )
    deadline_s: float = field(
        default=15.0,
        metadata=about(
            "For all checks of a node; what has not answered by then is UNKNOWN, and such a node "
            "is taken last.",
            unit="s",
            ge=1,
            le=600,
        ),
    )
    checks: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict,
        metadata=about(
            "Settings of checks for this run; they come before those of site.yaml. What that "
            "switches off (`enabled`, `ignore`) stays off, and more can be.",
            valid="a mapping of checks to their settings",
            read=read_settings,
        ),
    )
