"""Where a lab keeps its things, and what its nodes are called.

Everything about a lab is found again from its folder, by any process at any time: there is no
daemon, and nothing is remembered in memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from supervisor.core.errors import UserError

BASE = Path("/var/lib/superv-lab")
USER = "superv"
LOWEST_UID = 20000
CONTROLLER = "ctl"
LOGIN = "login"
# Private to the lab's network namespaces, so that labs side by side may all use the same range.
FIRST_ADDRESS = IPv4Address("10.77.0.1")
PREFIX = 16
MAX_NODES = 256
CTLD_PORT = 6817
SLURMD_PORT = 6818


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The paths of one lab."""

    name: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", self.name):
            raise UserError(
                f"lab name {self.name!r}: use 1 to 32 of a-z, 0-9 and '-', "
                "and start with a letter or a digit"
            )

    @property
    def dir(self) -> Path:
        return BASE / self.name

    @property
    def spec(self) -> Path:
        """What the lab was asked to be (JSON); written before anything is started."""
        return self.dir / "lab.json"

    @property
    def faults(self) -> Path:
        """Faults injected, one JSON object a line; readable by everybody."""
        return self.dir / "faults.jsonl"

    @property
    def boot_script(self) -> Path:
        return self.dir / "node.sh"

    @property
    def shared(self) -> Path:
        """The file system that all nodes share; the same path on every node."""
        return self.dir / "shared"

    @property
    def home(self) -> Path:
        """Home of the lab's ordinary user, on the shared file system."""
        return self.shared / "home"

    @property
    def etc(self) -> Path:
        """What lies over the machine's /etc on every node."""
        return self.dir / "etc"

    @property
    def epilog(self) -> Path:
        return self.etc / "slurm" / "epilog"

    @property
    def munge(self) -> Path:
        return self.dir / "munge"

    def node(self, name: str) -> Path:
        """Folder of one node: pid, address, console, kmsg, boot_id, slurmd's log and spool."""
        return self.dir / "nodes" / name


def node_names(count: int) -> tuple[str, ...]:
    """Compute nodes, in order."""
    return tuple(f"n{i}" for i in range(1, count + 1))


def addresses(count: int) -> dict[str, str]:
    """Address of every node of a lab with `count` compute nodes."""
    names = (CONTROLLER, LOGIN, *node_names(count))
    return {name: str(FIRST_ADDRESS + i) for i, name in enumerate(names)}
