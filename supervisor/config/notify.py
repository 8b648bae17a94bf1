"""`notify` in job.yaml and site.yaml: who is told what happens to a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from supervisor.core.setting import about


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyTarget:
    """One way to tell people."""

    command: tuple[str, ...] = field(
        metadata=about(
            "A program and its arguments, called as they stand, without a shell; it gets a JSON "
            "document on its standard input (docs/notify.md).",
            nonempty=True,
        )
    )
