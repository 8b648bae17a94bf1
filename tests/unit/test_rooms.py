"""Every module has a room, and docs/architecture.md names every room."""

from __future__ import annotations

import re
from pathlib import Path

REPO = Path(__file__).parents[2]


def test_only_what_starts_processes_stands_loose() -> None:
    loose = {path.name for path in (REPO / "supervisor").glob("*.py")}
    assert loose == {"__init__.py", "proc.py"}
    assert {path.name for path in (REPO / "healthchecks").glob("*.py")} == {
        "__init__.py",
        "__main__.py",
    }


def test_the_map_names_every_room() -> None:
    drawn = (REPO / "docs" / "architecture.md").read_text()
    for package in ("supervisor", "healthchecks"):
        for init in sorted((REPO / package).glob("*/__init__.py")):
            room = init.parent.name
            assert re.search(rf"\b{room}/", drawn), f"docs/architecture.md: no {package}/{room}/"
