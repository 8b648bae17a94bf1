"""What a person wants of a run, handed to its next engine when that starts.

The engine alone writes the journal; whoever asks for something starts it with the request.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from supervisor.channel import wire
from supervisor.core import events as ev


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An event for the journal of a run that has ended, and what has to be in place before."""

    event: ev.ResumeRequested | ev.IncludeRequested | ev.QuarantineRequested
    launch: Path | None = None  # a folder whose job file, environment and code replace the run's


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptionRequest:
    """Take up a run whose journal is lost."""

    who: str


def pack(request: Request | AdoptionRequest) -> bytes:
    if isinstance(request, AdoptionRequest):
        return json.dumps({"adopt": request.who}).encode()
    launch = str(request.launch) if request.launch else None
    return json.dumps({"event": wire.plain(request.event), "launch": launch}).encode()


def unpack(data: bytes) -> Request | AdoptionRequest | None:
    """None where nothing was asked. Raises WireError where the event can't be read."""
    if not data:
        return None
    asked = json.loads(data)
    if "adopt" in asked:
        return AdoptionRequest(who=asked["adopt"])
    event = wire.event_from(asked["event"])
    if not isinstance(event, ev.ResumeRequested | ev.IncludeRequested | ev.QuarantineRequested):
        raise wire.WireError(f"an engine does not start with {type(event).__name__}")
    return Request(event=event, launch=Path(asked["launch"]) if asked["launch"] else None)
