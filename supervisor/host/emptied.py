"""Places that somebody empties: nothing that is to stay should lie there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Whoever logs out may be the user of a run that goes on: logind.conf(5), pam_systemd(8).
AT_LOGOUT = {
    "/dev/shm": "systemd-logind empties it of its user's files at logout (RemoveIPC)",  # noqa: S108
    "/run/user": "it goes when its user logs out",
    "/var/run/user": "it goes when its user logs out",
}
CLEANED = {
    "/tmp": "cleaners of temporary folders empty it, and so does a reboot",  # noqa: S108
    "/var/tmp": "cleaners of temporary folders empty it",  # noqa: S108
    "/run": "a reboot empties it",
    "/var/run": "a reboot empties it",
}


def emptied(path: Path, *, looked_after: bool = False) -> str:
    """Why what lies at a path may be gone one day; empty where nothing speaks for that.

    By its name alone: to look at a path may hang. With `looked_after` somebody puts back what a
    cleaner takes.
    """
    places = AT_LOGOUT if looked_after else {**AT_LOGOUT, **CLEANED}
    name = os.path.normpath(path)
    found = [place for place in places if name == place or name.startswith(f"{place}/")]
    return f"{path}: {places[max(found, key=len)]}" if found else ""


def notes(state_dir: Path, node_dir: Path, checkpoints: Path | None) -> Iterator[str]:
    """A line for each folder of a run that lies in such a place: what, why and what to do."""
    if why := emptied(state_dir):
        yield f"state_dir: {why}; the run is lost with it: set state_dir in site.yaml"
    if why := emptied(node_dir, looked_after=True):
        yield f"node_dir: {why}; set node_dir in site.yaml"
    if checkpoints is not None and (why := emptied(checkpoints)):
        yield f"checkpoints.dir: {why}; set checkpoints.dir to storage that stays"
