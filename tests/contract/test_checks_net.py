"""Health checks of InfiniBand, RoCE and their NICs."""

from __future__ import annotations

from pathlib import Path

from checks import Case, both, each_of, garbled, lost, run, wrote

from healthchecks.check import Status
from tests.hardware.tree import Tree

OK, WARN, FAIL, UNKNOWN, SKIP = (
    Status.OK,
    Status.WARN,
    Status.FAIL,
    Status.UNKNOWN,
    Status.SKIP,
)


def port(device: str, name: str, text: str):
    return wrote(f"sys/class/infiniband/{device}/ports/1/{name}", text)


def no_nics(tree: Tree) -> None:
    tree.remove("sys/class/infiniband")
    for bdf in tree.path("sys/bus/pci/devices").iterdir():
        if tree.read(f"sys/bus/pci/devices/{bdf.name}/vendor") == "0x15b3":
            tree.remove(f"sys/bus/pci/devices/{bdf.name}")


INIT = port("mlx5_3", "state", "2: INIT")
NO_DRIVER = lost("sys/class/infiniband")

PORT = [
    Case(check="ib.port", name="healthy", status=OK, seen="8 fabric ports active at 400 Gb/s"),
    Case(
        check="ib.port",
        name="down",
        change=both(port("mlx5_3", "state", "1: DOWN"), port("mlx5_3", "phys_state", "2: Polling")),
        status=FAIL,
        seen="mlx5_3: DOWN, Polling",
    ),
    Case(check="ib.port", name="init for a moment", change=INIT, status=WARN, seen="INIT"),
    Case(
        check="ib.port",
        name="init for long",
        earlier=[(60.0, INIT)],
        status=FAIL,
        seen="mlx5_3: INIT, LinkUp for 60 s",
    ),
    Case(
        check="ib.port",
        name="init twice with a good time between",
        earlier=[(120.0, INIT), (60.0, port("mlx5_3", "state", "4: ACTIVE"))],
        change=INIT,
        status=WARN,
        seen="for 0 s",
    ),
    Case(
        check="ib.port",
        name="one slower than the others",
        change=port("mlx5_6", "rate", "200 Gb/sec (4X HDR)"),
        status=FAIL,
        seen="mlx5_6: 200 Gb/s",
    ),
    Case(
        check="ib.port",
        name="all slower than the site says",
        options={"fabric_gbps": 800},
        status=FAIL,
        seen="mlx5_0: 400 Gb/s; mlx5_1",
    ),
    Case(
        check="ib.port",
        name="storage down",
        change=port("mlx5_9", "state", "1: DOWN"),
        status=FAIL,
        seen="mlx5_9",
    ),
    Case(
        check="ib.port",
        name="storage down and ignored",
        change=port("mlx5_9", "state", "1: DOWN"),
        options={"ignore": ["mlx5_9"]},
        status=OK,
        seen="1 storage",
    ),
    Case(
        check="ib.port",
        name="LPF down",
        change=port("mlx5_11", "state", "1: DOWN"),
        status=OK,
        seen="8 fabric",
    ),
    Case(
        check="ib.port",
        name="down but perhaps an LPF",
        change=both(
            port("mlx5_11", "state", "1: DOWN"), garbled("sys/bus/pci/devices/0000:06:00.0/vpd")
        ),
        status=UNKNOWN,
        seen="may be an LPF port",
    ),
    Case(
        check="ib.port",
        name="a state that can't be read",
        change=garbled("sys/class/infiniband/mlx5_3/ports/1/state"),
        status=UNKNOWN,
        seen="mlx5_3: its state can't be read",
    ),
    Case(
        check="ib.port",
        name="a rate that is empty",
        change=port("mlx5_3", "rate", ""),
        status=UNKNOWN,
        seen="mlx5_3",
    ),
    Case(check="ib.port", name="no driver", change=NO_DRIVER, status=UNKNOWN, seen="14 ConnectX"),
    Case(check="ib.port", name="no NIC", change=no_nics, status=SKIP, seen="no RDMA device"),
]

CASES = [*PORT]


@each_of(CASES)
def test_case(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path)
