"""Another user on this machine, who may write where we do: programs run under his uid.

Only root can become somebody else: without it these tests are skipped. pytest's own folders are the
user's alone, so the stranger meets us in one of its own.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NOBODY = 65534
SETPRIV = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


def as_stranger(code: str, *args: object) -> None:
    """Run Python as another user, to its end."""
    words = [*SETPRIV, "/usr/bin/python3", "-c", f"import os, sys\n{code}", *map(str, args)]
    subprocess.run(words, check=True, timeout=60)


def begin_as_stranger(code: str, *args: object) -> subprocess.Popen[bytes]:
    words = [*SETPRIV, "/usr/bin/python3", "-c", f"import os, sys\n{code}", *map(str, args)]
    return subprocess.Popen(words)


@pytest.fixture
def meeting_place() -> Iterator[Path]:
    """A folder of ours where everybody may look."""
    place = Path(tempfile.mkdtemp(prefix="superv-", dir="/tmp"))
    place.chmod(0o755)
    yield place
    subprocess.run(["rm", "-rf", "--one-file-system", place], check=False)


class Canary:
    """What lies outside and has to survive."""

    def __init__(self, place: Path) -> None:
        self.place = place
        for name in ("step-10/shard", "step-10/.metadata", "a0001/step-11/shard", "precious"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(name)
        self.before = self.names()

    def names(self) -> list[str]:
        return sorted(str(path.relative_to(self.place)) for path in self.place.rglob("*"))

    def lives(self) -> bool:
        return self.names() == self.before and (self.place / "precious").read_text() == "precious"
