"""A lab at one moment, for people and scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lab import faults
from lab import node as nodes
from lab.layout import CONTROLLER, USER, Layout, addresses, node_names


@dataclass(frozen=True, slots=True, kw_only=True)
class LabNode:
    """One node. `slurm` is sinfo's long state, unknown if Slurm did not say; None off the pool."""

    name: str
    address: str
    power: str  # on, off
    cable: str  # up, cut, none
    slurm: str | None
    boot_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabStatus:
    """A lab at one moment."""

    name: str
    dir: str
    shared: str
    user: str
    slurm: str  # which, in full
    controller: str  # running, paused, dead
    nodes: tuple[LabNode, ...]
    faults: tuple[faults.InjectedFault, ...]


def look(
    layout: Layout, count: int, states: Mapping[str, str], *, slurm: str, last_faults: int
) -> LabStatus:
    """A lab of so many compute nodes now; `states` is what sinfo said of them."""
    cables = faults.cables(layout)
    compute = node_names(count)
    rows = []
    for name, address in addresses(count).items():
        on = nodes.init_pid(layout, name) is not None
        boot = layout.node(name) / "boot_id"
        cable = {True: "up", False: "cut", None: "none"}[cables.get(name)]
        rows.append(
            LabNode(
                name=name,
                address=address,
                power="on" if on else "off",
                cable="up" if name == CONTROLLER else cable,
                slurm=states.get(name, "unknown") if name in compute else None,
                boot_id=boot.read_text().strip() if on and boot.exists() else None,
            )
        )
    return LabStatus(
        name=layout.name,
        dir=str(layout.dir),
        shared=str(layout.shared),
        user=USER,
        slurm=slurm,
        controller=faults.controller_state(layout),
        nodes=tuple(rows),
        faults=tuple(faults.read(layout)[-last_faults:]),
    )
