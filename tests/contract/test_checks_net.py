"""Health checks of InfiniBand and RoCE ports and their NICs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from checks import Case, Change, both, each_of, garbled, looks, lost, nothing, run, wrote

from healthchecks.frame import runner
from healthchecks.frame.check import Status
from healthchecks.frame.registry import registered
from healthchecks.frame.runner import Order
from tests.hardware import tree as hardware
from tests.hardware.tree import FABRIC, STORAGE, Tree, borrowed

OK, WARN, FAIL, UNKNOWN, SKIP = (
    Status.OK,
    Status.WARN,
    Status.FAIL,
    Status.UNKNOWN,
    Status.SKIP,
)
IB = "sys/class/infiniband"
PCI = "sys/bus/pci/devices"


def port(device: str, name: str, text: str) -> Change:
    return wrote(f"{IB}/{device}/ports/1/{name}", text)


def grew(device: str, counter: str, by: int) -> Change:
    return lambda tree: tree.add(f"{IB}/{device}/ports/1/{counter}", by)


def of_all(devices: Sequence[str], name: str, text: str) -> Change:
    return both(*(port(device, name, text) for device in devices))


def nics(tree: Tree) -> list[str]:
    return [
        f"{PCI}/{bdf.name}"
        for bdf in tree.path(PCI).iterdir()
        if tree.read(f"{PCI}/{bdf.name}/vendor") == "0x15b3"
    ]


def no_nics(tree: Tree) -> None:
    tree.remove(IB)
    for nic in nics(tree):
        tree.remove(nic)


def no_driver(tree: Tree) -> None:
    tree.remove(IB)
    for nic in nics(tree):
        tree.remove(f"{nic}/infiniband")


def no_infiniband(tree: Tree) -> None:
    for device in tree.path(IB).iterdir():
        if device.name not in STORAGE:
            tree.remove(f"{IB}/{device.name}")


def no_roce(tree: Tree) -> None:
    for device in STORAGE:
        tree.remove(f"{IB}/{device}")


def not_root(tree: Tree) -> None:
    """Vital product data is for root only."""
    for nic in nics(tree):
        tree.unreadable(f"{nic}/vpd")


def one_board(tree: Tree) -> None:
    for device in tree.path(IB).iterdir():
        tree.write(f"{IB}/{device.name}/board_id", "MT_0000000838")


INIT = port("mlx5_3", "state", "2: INIT")


def everywhere(check: str, *, ib_only: bool = False) -> list[Case]:
    """What every check of ports says to a node without a driver, and without NICs."""
    return [
        Case(check=check, name="no driver", change=no_driver, status=UNKNOWN, seen="14 ConnectX"),
        Case(check=check, name="no NIC", change=no_nics, status=SKIP, seen="no RDMA device"),
        *(
            [
                Case(
                    check=check,
                    name="no InfiniBand",
                    change=no_infiniband,
                    status=SKIP,
                    seen="no InfiniBand port",
                )
            ]
            if ib_only
            else []
        ),
    ]


def dark(device: str) -> Change:
    """No light from the other side."""
    return both(port(device, "state", "1: DOWN"), port(device, "phys_state", "2: Polling"))


PORT = [
    Case(check="ib.port", name="healthy", status=OK, seen="8 fabric ports active at 400 Gb/s"),
    Case(
        check="ib.port",
        name="down",
        earlier=[(60.0, nothing)],
        change=both(port("mlx5_3", "state", "1: DOWN"), port("mlx5_3", "phys_state", "2: Polling")),
        status=FAIL,
        seen="mlx5_3: DOWN, Polling",
        shared="",
    ),
    Case(
        check="ib.port",
        name="all of a board without light",
        earlier=[(60.0, nothing)],
        change=both(*(dark(device) for device in ("mlx5_8", "mlx5_9"))),
        status=FAIL,
        seen="mlx5_8: DOWN, Polling; mlx5_9: DOWN, Polling",
        shared="switch of storage ports",
    ),
    Case(
        check="ib.port",
        name="all of a board and one disabled here",
        earlier=[(60.0, nothing)],
        change=both(dark("mlx5_8"), dark("mlx5_9"), port("mlx5_9", "phys_state", "3: Disabled")),
        status=FAIL,
        seen="mlx5_9: DOWN, Disabled",
        shared="",
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
        earlier=[(60.0, nothing)],
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
        name="not root",
        change=not_root,
        status=OK,
        seen="8 fabric ports active at 400 Gb/s, 2 storage",
    ),
    Case(
        check="ib.port",
        name="down but perhaps an LPF",
        change=both(not_root, port("mlx5_11", "state", "1: DOWN")),
        status=UNKNOWN,
        seen="taken for an LPF port by its board",
    ),
    Case(
        check="ib.port",
        name="nothing tells LPF ports",
        change=both(
            not_root,
            lambda t: [t.write(f"{IB}/mlx5_{n}/board_id", "MT_1") for n in (4, 5)],
            lambda t: [t.remove(f"{IB}/mlx5_{n}") for n in (6, 7)],
        ),
        status=UNKNOWN,
        seen="can't be told apart",
    ),
    Case(
        check="ib.port",
        name="RoCE alone is the fabric",
        change=no_infiniband,
        status=OK,
        seen="2 fabric ports active at 200 Gb/s",
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
    *everywhere("ib.port"),
]

MISSING = [
    Case(check="ib.missing", name="healthy", status=OK, seen="8 fabric, 2 storage, 4 lpf ports"),
    Case(
        check="ib.missing",
        name="gone from PCI since the last look",
        earlier=[(3600.0, nothing)],
        change=both(lost(f"{IB}/mlx5_5"), lost(f"{PCI}/0000:ab:00.0")),
        status=FAIL,
        seen="fabric port mlx5_5 at 0000:ab:00.0 is gone from PCI",
    ),
    Case(
        check="ib.missing",
        name="all gone since the last look",
        earlier=[(3600.0, nothing)],
        change=no_nics,
        status=FAIL,
        seen="0000:ba:00.0",
    ),
    Case(
        check="ib.missing",
        name="no driver on one",
        change=both(lost(f"{IB}/mlx5_5"), lost(f"{PCI}/0000:ab:00.0/infiniband")),
        status=FAIL,
        seen="0000:ab:00.0 is on PCI and has no RDMA device",
    ),
    Case(check="ib.missing", name="no driver", change=no_driver, status=FAIL, seen="0000:18:00.0"),
    Case(
        check="ib.missing",
        name="fewer than the site says",
        change=both(lost(f"{IB}/mlx5_5"), lost(f"{PCI}/0000:ab:00.0")),
        options={"fabric": 8},
        status=FAIL,
        seen="7 fabric ports",
    ),
    Case(
        check="ib.missing",
        name="a device without a port",
        change=lost(f"{IB}/mlx5_5"),
        status=UNKNOWN,
        seen="mlx5_5 shows no port",
    ),
    Case(check="ib.missing", name="no class", change=garbled(IB), status=UNKNOWN, seen="levels"),
    Case(check="ib.missing", name="no NIC ever", change=no_nics, status=SKIP, seen="none was here"),
]

MINUTE_AGO = [(60.0, nothing)]
COUNTERS = [
    Case(check="ib.counters", name="first look", status=UNKNOWN, seen="first look: no rate yet"),
    Case(check="ib.counters", name="quiet", earlier=MINUTE_AGO, status=OK, seen="no growth"),
    Case(
        check="ib.counters",
        name="totals mean nothing",
        earlier=[(60.0, grew("mlx5_1", "counters/symbol_error", 50_000))],
        status=OK,
    ),
    Case(
        check="ib.counters",
        name="a link lost",
        earlier=MINUTE_AGO,
        change=grew("mlx5_1", "counters/link_downed", 1),
        status=FAIL,
        seen="mlx5_1: 1 link losses within an hour",
    ),
    Case(
        check="ib.counters",
        name="symbols lost",
        earlier=[(60.0, nothing), (30.0, grew("mlx5_2", "counters/symbol_error", 100))],
        change=grew("mlx5_2", "counters/symbol_error", 30),
        status=FAIL,
        seen="mlx5_2: 130 symbol errors within an hour",
    ),
    Case(
        check="ib.counters",
        name="few symbols lost in a moment",
        earlier=[(1.0, nothing)],
        change=grew("mlx5_2", "counters/symbol_error", 5),
        status=OK,
    ),
    Case(
        check="ib.counters",
        name="as many symbols over a day",
        earlier=[(86400.0, nothing)],
        change=grew("mlx5_2", "counters/symbol_error", 130),
        status=OK,
    ),
    Case(
        check="ib.counters",
        name="recoveries",
        earlier=MINUTE_AGO,
        change=grew("mlx5_2", "counters/link_error_recovery", 6),
        status=WARN,
        seen="6 link error recoveries within 60 s",
    ),
    Case(
        check="ib.counters",
        name="reset",
        earlier=[(60.0, grew("mlx5_2", "counters/link_downed", 9))],
        change=port("mlx5_2", "counters/link_downed", "0"),
        status=UNKNOWN,
        seen="first look",
    ),
    Case(
        check="ib.counters",
        name="full",
        change=grew("mlx5_2", "counters/symbol_error", 0xFFFF),
        status=WARN,
        seen="symbol_error is full",
    ),
    Case(
        check="ib.counters",
        name="one that can't be read",
        change=garbled(f"{IB}/mlx5_2/ports/1/counters/symbol_error"),
        status=UNKNOWN,
        seen="mlx5_2: symbol_error can't be read",
    ),
    Case(
        check="ib.counters",
        name="none on one port",
        change=lost(f"{IB}/mlx5_2/ports/1/counters"),
        status=UNKNOWN,
        seen="mlx5_2: shows no counters",
    ),
    Case(
        check="ib.counters",
        name="virtual functions",
        change=both(
            *(
                lost(f"{IB}/{d}/ports/1/{what}")
                for d in FABRIC
                for what in ("counters", "hw_counters")
            )
        ),
        status=SKIP,
        seen="virtual functions",
    ),
    Case(
        check="ib.counters",
        name="not root",
        earlier=[(60.0, not_root)],
        status=OK,
        seen="8 ports",
    ),
    Case(
        check="ib.counters",
        name="one loss ten hours ago",
        earlier=[(36_000.0, nothing)],
        change=grew("mlx5_1", "counters/link_downed", 1),
        status=WARN,
        seen="mlx5_1: 1 link losses within 10.0 h",
    ),
    Case(
        check="ib.counters",
        name="one loss ten hours before the last look",
        earlier=[
            (36_060.0, nothing),
            (60.0, grew("mlx5_1", "counters/link_downed", 1)),
        ],
        status=OK,
    ),
    Case(
        check="ib.counters",
        name="counters without a PMA beside some that count",
        earlier=[(60.0, port("mlx5_1", "counters/symbol_error", "N/A (no PMA)"))],
        status=OK,
    ),
    Case(
        check="ib.counters",
        name="garbled beside some that count",
        earlier=[(60.0, port("mlx5_1", "counters/symbol_error", "many"))],
        status=UNKNOWN,
        seen="symbol_error can't be read",
    ),
    *everywhere("ib.counters", ib_only=True),
    Case(check="roce.counters", name="quiet", earlier=MINUTE_AGO, status=OK, seen="2 ports"),
    Case(
        check="roce.counters",
        name="congested",
        earlier=MINUTE_AGO,
        change=grew("mlx5_8", "hw_counters/roce_slow_restart", 1200),
        status=WARN,
        seen="mlx5_8: 1200 slow restarts within 60 s",
    ),
    Case(
        check="roce.counters",
        name="one that is gone",
        change=lost(f"{IB}/mlx5_8/ports/1/hw_counters/out_of_sequence"),
        status=UNKNOWN,
        seen="shows no out_of_sequence",
    ),
    Case(check="roce.counters", name="no RoCE", change=no_roce, status=SKIP, seen="no Ethernet"),
]

SUBNET = [
    Case(check="ib.sm", name="healthy", status=OK, seen="8 ports with a LID; subnet manager 0x1"),
    Case(
        check="ib.sm",
        name="no manager",
        change=port("mlx5_4", "sm_lid", "0x0"),
        status=FAIL,
        seen="mlx5_4: LID 0x104, subnet manager's LID 0x0",
    ),
    Case(check="ib.sm", name="no LID", change=port("mlx5_4", "lid", "0x0"), status=FAIL),
    Case(
        check="ib.sm",
        name="nonsense",
        change=port("mlx5_4", "lid", "many"),
        status=UNKNOWN,
        seen="holds 'many'",
    ),
    *everywhere("ib.sm", ib_only=True),
    Case(check="ib.pkey", name="healthy", status=OK, seen="8 ports, keys 0xffff"),
    Case(
        check="ib.pkey",
        name="limited member",
        change=port("mlx5_4", "pkeys/0", "0x7fff"),
        status=FAIL,
        seen="mlx5_4: partition keys 0x7fff: limited member only",
    ),
    Case(
        check="ib.pkey",
        name="limited in the default, full in its own",
        change=both(
            of_all(FABRIC, "pkeys/0", "0x7fff"),
            of_all(FABRIC, "pkeys/1", "0x8005"),
        ),
        status=OK,
        seen="0x7fff 0x8005",
    ),
    Case(
        check="ib.pkey",
        name="none",
        change=port("mlx5_4", "pkeys/0", "0x0000"),
        status=FAIL,
        seen="no partition",
    ),
    Case(
        check="ib.pkey",
        name="no table",
        change=lost(f"{IB}/mlx5_4/ports/1/pkeys"),
        status=UNKNOWN,
        seen="mlx5_4: shows no partition keys",
    ),
    *everywhere("ib.pkey", ib_only=True),
]

FIRMWARE = [
    Case(check="nic.fw", name="healthy", status=OK, seen="fabric fw_ver 28.43.2026"),
    Case(
        check="nic.fw",
        name="one of another firmware",
        change=wrote(f"{IB}/mlx5_4/fw_ver", "28.39.1002"),
        status=WARN,
        seen="mlx5_4: fw_ver 28.39.1002",
    ),
    Case(
        check="nic.fw",
        name="one without a board",
        change=lost(f"{IB}/mlx5_4/board_id"),
        status=UNKNOWN,
        seen="mlx5_4: shows no board_id",
    ),
    *everywhere("nic.fw"),
]


def mlxlink(raw: str = "4E-9", effective: str = "15E-255", degrees: int = 52, code: int = 0) -> str:
    """As of MFT 4.30, shortened."""
    output = {
        "Operational Info": {"State": "Active", "Physical state": "LinkUp", "Width": "4x"},
        "Troubleshooting Info": {
            "Status Opcode": str(code),
            "Recommendation": "Bad signal integrity" if code else "No issue was observed",
        },
        "Module Info": {
            "Temperature [C]": f"{degrees} [-10..80]",
            "Vendor Part Number": "MCP4Y10-N001",
            "Vendor Serial Number": "MT2345VS01234",
        },
        "Physical Counters and BER Info": {
            "Time Since Last Clear [Min]": "312.4",
            "Effective Physical Errors": "0",
            "Effective Physical BER": effective,
            "Raw Physical Errors Per Lane": {"values": ["8", "2", "9", "1"]},
            "Raw Physical BER": raw,
        },
    }
    return json.dumps({"status": {"code": 0, "message": "success"}, "result": {"output": output}})


MLXLINK_TEXT = """
Physical Counters and BER Info
------------------------------
Time Since Last Clear [Min]        : 312.4
Effective Physical Errors          : 0
Effective Physical BER             : 15E-255
Raw Physical Errors Per Lane       : 8,2,9,1
Raw Physical BER                   : 2E-5
"""
CABLE = [
    Case(check="ib.cable", name="healthy", programs={"mlxlink": mlxlink()}, status=OK, seen="10"),
    Case(
        check="ib.cable",
        name="raw errors",
        programs={"mlxlink": mlxlink(raw="3E-5")},
        status=WARN,
        seen="mlx5_0: Raw Physical BER 3e-05",
    ),
    Case(
        check="ib.cable",
        name="raw errors in text",
        programs={"mstlink": MLXLINK_TEXT},
        status=WARN,
        seen="mlx5_0: Raw Physical BER 2e-05",
    ),
    Case(
        check="ib.cable",
        name="errors after correction",
        programs={"mlxlink": mlxlink(effective="2E-10")},
        status=WARN,
        seen="Effective Physical BER 2e-10",
    ),
    Case(
        check="ib.cable",
        name="hot",
        programs={"mlxlink": mlxlink(degrees=80)},
        status=WARN,
        seen="transceiver at 80 °C",
    ),
    Case(
        check="ib.cable",
        name="its own advice",
        programs={"mlxlink": mlxlink(code=1042)},
        status=WARN,
        seen="Bad signal integrity",
    ),
    Case(
        check="ib.cable",
        name="no access",
        programs={"mlxlink": "#!/bin/sh\necho -E- Failed to open device >&2; exit 1\n"},
        status=UNKNOWN,
        seen="Failed to open device",
    ),
    Case(
        check="ib.cable",
        name="no error rate",
        programs={"mlxlink": '{"result": {"output": {"State": "Down"}}}'},
        status=UNKNOWN,
        seen="shows no bit error rate",
    ),
    Case(check="ib.cable", name="no tool", status=SKIP, seen="is installed"),
]


@pytest.fixture(scope="module", autouse=True)
def verbs() -> Iterator[None]:
    """Our libibverbs, built once."""
    place = Path(LIBRARY["library"])
    place.parent.mkdir()
    source = Path(hardware.__file__).with_name("verbs_stub.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", place, source], check=True)
    yield
    shutil.rmtree(place.parent)


LIBRARY = {"library": f"{tempfile.gettempdir()}/superv-verbs-{os.getpid()}/libibverbs.so.1"}


def stub(mtus: str = "", *, fabric: str = "5/5", storage: str = "5/5") -> dict[str, str]:
    """Of all devices, those of `mtus` first."""
    rest = [f"{d}={fabric}" for d in FABRIC] + [f"{d}={storage}" for d in STORAGE]
    named = [word.partition("=")[0] for word in mtus.split()]
    return {
        "IBV_STUB": " ".join([*mtus.split(), *(r for r in rest if r.split("=")[0] not in named)])
    }


MTU = [
    Case(
        check="ib.mtu",
        name="healthy",
        options=LIBRARY,
        env=stub(),
        status=OK,
        seen="active MTU 8 x 4096",
    ),
    Case(
        check="ib.mtu",
        name="one smaller",
        options=LIBRARY,
        env=stub("mlx5_2=4/5"),
        status=FAIL,
        seen="mlx5_2: active MTU 2048, it can 4096",
    ),
    Case(
        check="ib.mtu",
        name="all smaller than they can",
        change=both(*(wrote(f"sys/class/net/ib{n}/mtu", "2044") for n in range(8))),
        options=LIBRARY,
        env=stub(fabric="4/5"),
        status=WARN,
        seen="mlx5_0: active MTU 2048",
    ),
    Case(
        check="ib.mtu",
        name="all as the site says",
        change=both(*(wrote(f"sys/class/net/ib{n}/mtu", "2044") for n in range(8))),
        options={**LIBRARY, "expected": 2048},
        env=stub(fabric="4/5"),
        status=OK,
        seen="8 x 2048",
    ),
    Case(
        check="ib.mtu",
        name="IPoIB too large for it",
        options={**LIBRARY, "expected": 2048},
        env=stub(fabric="4/4"),
        status=FAIL,
        seen="mlx5_2: ib2 has MTU 4092 on an active MTU of 2048",
    ),
    Case(
        check="ib.mtu",
        name="one that can't be opened",
        options=LIBRARY,
        env=stub("mlx5_2=9/5"),
        status=UNKNOWN,
        seen="mlx5_2: ibv_open_device: errno 13",
    ),
    Case(
        check="ib.mtu",
        name="one that gives an error",
        options=LIBRARY,
        env=stub("mlx5_2=0/5"),
        status=UNKNOWN,
        seen="mlx5_2: ibv_query_port: error 5",
    ),
    Case(
        check="ib.mtu",
        name="one that is not listed",
        options=LIBRARY,
        env={"IBV_STUB": "mlx5_0=5/5"},
        status=UNKNOWN,
        seen="mlx5_1: libibverbs does not list it",
    ),
    Case(
        check="ib.mtu",
        name="no library",
        options={"library": "/nowhere/libibverbs.so.1"},
        status=UNKNOWN,
        seen="/nowhere/libibverbs.so.1",
    ),
    *everywhere("ib.mtu", ib_only=True),
    Case(
        check="roce.mtu",
        name="healthy",
        options=LIBRARY,
        env=stub(),
        status=OK,
        seen="active MTU 2 x 4096",
    ),
    Case(
        check="roce.mtu",
        name="interface of 1500",
        change=wrote("sys/class/net/ens41np0/mtu", "1500"),
        options=LIBRARY,
        env=stub("mlx5_9=3/5"),
        status=FAIL,
        seen="mlx5_9: active MTU 1024; ens41np0 has MTU 1500",
    ),
    Case(
        check="roce.mtu",
        name="no library",
        options={"library": "/nowhere/libibverbs.so.1"},
        status=UNKNOWN,
        seen="/nowhere",
    ),
    Case(check="roce.mtu", name="no RoCE", change=no_roce, status=SKIP, seen="no Ethernet"),
]

PFC = (
    "pfc-cap 8 macsec-bypass off delay 4096\n"
    "prio-pfc 0:off 1:off 2:off 3:on 4:off 5:off 6:off 7:off"
)
ETHTOOL = """NIC statistics:
     rx_packets: 5
     rx_discards_phy: {discards}
     rx_prio3_pause: 12"""
# Its second round of calls (two ports a round) has 1000 more than the first.
DISCARDING = """#!/bin/sh
cd "$(/usr/bin/dirname "$0")"
echo x >> calls
calls=$(/usr/bin/wc -l < calls)
echo "     rx_discards_phy: $(( (calls + 1) / 2 * 1000 ))"
"""
ROCE = [
    Case(
        check="roce.gid",
        name="healthy",
        status=OK,
        seen="mlx5_8 3 (10.0.0.17), mlx5_9 3 (10.1.0.17)",
    ),
    Case(
        check="roce.gid",
        name="no address",
        change=both(
            port("mlx5_8", "gids/2", ":".join(["0000"] * 8)),
            port("mlx5_8", "gids/3", ":".join(["0000"] * 8)),
        ),
        status=FAIL,
        seen="mlx5_8: no RoCE v2 GID of an IPv4 address",
    ),
    Case(
        check="roce.gid",
        name="shifted",
        change=both(
            port("mlx5_8", "gids/5", "0000:0000:0000:0000:0000:ffff:0a00:0011"),
            port("mlx5_8", "gid_attrs/types/5", "RoCE v2"),
            port("mlx5_8", "gid_attrs/types/3", "IB/RoCE v1"),
        ),
        options={"index": 3},
        status=FAIL,
        seen="mlx5_8: GID 3 is IB/RoCE v1 of 10.0.0.17",
    ),
    Case(
        check="roce.gid",
        name="of another interface",
        change=port("mlx5_8", "gid_attrs/ndevs/3", "eth0"),
        status=WARN,
        seen="3 on eth0",
    ),
    Case(
        check="roce.gid",
        name="of a bond above it",
        change=both(
            port("mlx5_8", "gid_attrs/ndevs/3", "bond0"),
            wrote("sys/class/net/ens40np0/upper_bond0/mtu", "9000"),
        ),
        status=OK,
    ),
    Case(
        check="roce.gid",
        name="no type",
        change=lost(f"{IB}/mlx5_8/ports/1/gid_attrs/types/3"),
        status=UNKNOWN,
        seen="types/3",
    ),
    Case(
        check="roce.gid",
        name="nonsense",
        change=port("mlx5_8", "gids/3", "what"),
        status=UNKNOWN,
        seen="GID 3 is 'what'",
    ),
    Case(check="roce.gid", name="no RoCE", change=no_roce, status=SKIP, seen="no Ethernet port"),
    Case(
        check="roce.qos",
        name="healthy",
        programs={"dcb": PFC},
        options={"pfc": [3]},
        status=OK,
        seen="mlx5_8 PFC 3, ECN np 0,1,2,3,4,5,6,7",
    ),
    Case(
        check="roce.qos",
        name="no flow control",
        programs={"dcb": PFC.replace("on", "off")},
        options={"pfc": [3]},
        status=FAIL,
        seen="mlx5_8: PFC on priorities none",
    ),
    Case(
        check="roce.qos",
        name="one side without ECN",
        change=wrote("sys/class/net/ens41np0/ecn/roce_rp/enable/3", "0"),
        programs={"dcb": PFC},
        options={"ecn": [3]},
        status=FAIL,
        seen="mlx5_9: ECN on priorities 0,1,2,4,5,6,7",
    ),
    Case(
        check="roce.qos",
        name="the inbox driver",
        change=both(
            lost("sys/class/net/ens40np0/ecn"),
            lost("sys/class/net/ens41np0/ecn"),
        ),
        programs={"dcb": PFC},
        status=OK,
        seen="ECN not shown by this driver",
    ),
    Case(
        check="roce.qos",
        name="the inbox driver, and the site wants it",
        change=lost("sys/class/net/ens40np0/ecn"),
        programs={"dcb": PFC},
        options={"ecn": [0, 1, 2, 3, 4, 5, 6, 7]},
        status=UNKNOWN,
        seen="does not show its ECN",
    ),
    Case(check="roce.qos", name="no dcb", status=SKIP, seen="is not installed"),
    Case(
        check="roce.qos",
        name="no dcb and a site that wants to know",
        options={"pfc": [3]},
        status=UNKNOWN,
        seen="dcb is not installed",
    ),
    Case(
        check="roce.qos",
        name="not supported",
        programs={"dcb": "#!/bin/sh\necho 'Error: Operation not supported' >&2; exit 95\n"},
        status=UNKNOWN,
        seen="Operation not supported",
    ),
    Case(
        check="roce.discards",
        name="quiet",
        earlier=MINUTE_AGO,
        programs={"ethtool": ETHTOOL.format(discards=7)},
        status=OK,
        seen="no discards",
    ),
    Case(
        check="roce.discards",
        name="discards",
        earlier=MINUTE_AGO,
        programs={"ethtool": DISCARDING},
        status=WARN,
        seen="mlx5_8: 1000 packets discarded within 60 s",
    ),
    Case(
        check="roce.discards",
        name="another driver",
        programs={"ethtool": "NIC statistics:\n     rx_packets: 5"},
        status=UNKNOWN,
        seen="shows no rx_discards_phy",
    ),
    Case(check="roce.discards", name="no ethtool", status=SKIP, seen="not installed"),
    Case(check="roce.qos", name="no RoCE", change=no_roce, status=SKIP, seen="no Ethernet port"),
]

ROUTE = """From ca {0x9c05910300a00000} portnum 1 lid 256-256 "node-017 mlx5_0"
[1] -> switch port {0xfc6a1c0300e7f000}[17] lid 2-2 "leaf-r1"
[41] -> switch port {0xfc6a1c0300e7f100}[3] lid 5-5 "spine-02"
[9] -> switch port {0xfc6a1c0300e7f200}[42] lid 7-7 "leaf-r9"
[12] -> ca port {0x9c05910300a00100}[1] lid 300-300 "node-042 mlx5_0"
To ca {0x9c05910300a00100} portnum 1 lid 300-300 "node-042 mlx5_0"
"""


def subnet(*, small: str = "", record: int = 5, **more: str) -> dict[str, str]:
    """infiniband-diags over that route. `small`: "LID PORT" with an MTU of 2048."""
    portinfo = f"""#!/bin/sh
mtu=4096
[ "$6 $7" = "{small}" ] && mtu=2048
echo "# Port info: Lid $6 port $7
LinkState:.......................Active
NeighborMTU:.....................$mtu
MtuCap:..........................4096"
"""
    path = f"""PathRecord dump:
\t\tdlid....................300
\t\tslid....................256
\t\tmtu.....................{0x80 + record:#x}
\t\trate....................0x90
"""
    return {"ibtracert": ROUTE, "smpquery": portinfo, "saquery": path} | more


PEER = {"peers": ["0x12c"]}
BROKEN = "#!/bin/sh\necho 'ibwarn: mad_rpc failed' >&2; exit 1\n"
PATH = [
    Case(
        check="ib.path_mtu",
        name="healthy",
        options=PEER,
        programs=subnet(),
        status=OK,
        seen="MTU 4096 over 4 links from mlx5_0 to LID 300",
    ),
    Case(
        check="ib.path_mtu",
        name="one link smaller",
        options=PEER,
        programs=subnet(small="5 9", record=4),
        status=FAIL,
        seen="link from spine-02 port 9 to leaf-r9 port 42 has MTU 2048",
    ),
    Case(
        check="ib.path_mtu",
        name="smaller at its far end",
        options=PEER,
        programs=subnet(small="7 42", record=4),
        status=FAIL,
        seen="link from spine-02 port 9 to leaf-r9 port 42 has MTU 2048",
    ),
    Case(
        check="ib.path_mtu",
        name="only the path record smaller",
        options=PEER,
        programs=subnet(record=4),
        status=FAIL,
        seen="gives paths to LID 300 an MTU of 2048",
    ),
    Case(
        check="ib.path_mtu",
        name="no route",
        options=PEER,
        programs=subnet(ibtracert="From ca {0x9c05910300a00000} portnum 1 lid 256-256"),
        status=UNKNOWN,
        seen="ibtracert shows no route",
    ),
    Case(
        check="ib.path_mtu",
        name="no right to ask",
        options=PEER,
        programs=subnet(smpquery=BROKEN),
        status=UNKNOWN,
        seen="smpquery ended with 1: ibwarn: mad_rpc failed",
    ),
    Case(
        check="ib.path_mtu",
        name="no such device",
        options={"peers": ["mlx5_77:0x12c"]},
        programs=subnet(),
        status=UNKNOWN,
        seen="no InfiniBand device mlx5_77",
    ),
    Case(check="ib.path_mtu", name="no tools", options=PEER, status=SKIP, seen="saquery"),
    Case(check="ib.path_mtu", name="no peers", status=SKIP, seen="no peers are given"),
    Case(
        check="path.mtu",
        name="real interfaces",
        status=OK,
        none="on real interfaces: tests/local/test_path_mtu.py",
    ),
    Case(
        check="path.mtu",
        name="a smaller hop",
        status=FAIL,
        none="on real interfaces: tests/local/test_path_mtu.py",
    ),
    Case(
        check="path.mtu",
        name="no way there",
        options={"peers": ["255.255.255.255"]},
        status=UNKNOWN,
        seen="no route to 255.255.255.255",
    ),
    Case(
        check="path.mtu",
        name="no mount table",
        change=garbled("proc/self/mountinfo"),
        status=UNKNOWN,
        seen="mountinfo",
    ),
    Case(
        check="path.mtu",
        name="no peers, no NFS",
        change=wrote("proc/self/mountinfo", "29 1 252:1 / / rw - ext4 /dev/vda1 rw"),
        status=SKIP,
        seen="no NFS server is mounted",
    ),
    Case(check="path.mtu", name="not this machine", status=SKIP, seen="no network"),
]

CASES = [*PATH, *PORT, *MISSING, *COUNTERS, *SUBNET, *FIRMWARE, *CABLE, *MTU, *ROCE]


@each_of(CASES)
def test_case(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path)


def test_facts_for_the_cohort(tmp_path: Path) -> None:
    """What is compared over nodes; a port that was not read must not look like a difference."""

    def facts(check: str, change: Change = nothing, **more: object) -> dict[str, str]:
        case = Case(check=check, name="facts", change=change, status=OK, **more)
        return dict(looks(case, tmp_path)[-1].facts)

    unread = garbled(f"{IB}/mlx5_3/ports/1/state")
    assert facts("ib.port") == {"fabric_rates": "8 x 400", "storage_rates": "2 x 200"}
    assert facts("ib.port", unread) == {"storage_rates": "2 x 200"}
    assert facts("ib.missing") == {"fabric_ports": "8", "storage_ports": "2", "lpf_ports": "4"}
    assert facts("ib.missing", not_root) == facts("ib.missing")
    assert facts("ib.pkey") == {"keys": "8 x 0xffff"}
    assert facts("ib.mtu", options=LIBRARY, env=stub()) == {
        "active_mtus": "8 x 4096",
        "ipoib": "datagram 4092",
    }
    assert facts("ib.mtu", options=LIBRARY, env=stub("mlx5_2=9/5")) == {}
    assert facts("roce.gid") == {"mlx5_8.index": "3", "mlx5_9.index": "3"}


def test_a_nic_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in stub("mlx5_2=7/5").items():
        monkeypatch.setenv(name, value)
    check = replace(registered()["ib.mtu"], call_deadline_s=0.05)
    with borrowed() as tree:
        order = Order(checks=[check], settings={"ib.mtu": LIBRARY}, root=tree.root)
        [finding] = runner.run(order).findings
    assert finding.status is UNKNOWN
    assert "at ibv_query_port mlx5_2 1" in finding.result.seen
