"""Each limit from both sides: ports, disks, memory, services."""

from __future__ import annotations

from typing import Any

from checks import Change, both, wrote
from healthy import IB
from limits import FAIL, OK, UNKNOWN, WARN, lasting, limit, prints
from sick_rows import asleep
from sick_tools import _link, _slurm, _smart

from tests.hardware.tree import Tree

HOUR = 3600.0


def counter(name: str, device: str = "mlx5_3") -> Any:
    return lambda value: wrote(f"{IB}/{device}/ports/1/counters/{name}", str(value))


def congestion(name: str) -> Any:
    return lambda value: wrote(f"{IB}/mlx5_8/ports/1/hw_counters/{name}", str(value))


PORTS = [
    *limit(
        "ib.port",
        "physical state of one that is down",
        lambda n: both(
            wrote(f"{IB}/mlx5_3/ports/1/state", "1: DOWN"),
            wrote(f"{IB}/mlx5_3/ports/1/phys_state", f"{n}: x"),
        ),
        {2: FAIL, 3: FAIL, 4: WARN, 5: FAIL, 6: WARN},
        earlier=[(60.0, both())],
    ),
    *(
        case
        for name, ago_s, means in (
            ("link_downed", HOUR, {0: OK, 1: FAIL}),
            ("link_downed", HOUR + 1, {1: WARN}),
            ("symbol_error", HOUR, {120: OK, 121: FAIL}),
            ("link_error_recovery", 60.0, {5: OK, 6: WARN}),
            ("local_link_integrity_errors", HOUR, {0: OK, 1: WARN}),
            ("excessive_buffer_overrun_errors", HOUR, {0: OK, 1: WARN}),
        )
        for case in limit(
            "ib.counters",
            f"{name} within {ago_s:g} s",
            counter(name),
            means,
            earlier=[(ago_s, counter(name)(0))],
        )
    ),
    *(
        case
        for name, means in (
            ("symbol_error", {65_534: FAIL, 65_535: WARN}),
            ("link_error_recovery", {254: OK, 255: WARN}),
            ("local_link_integrity_errors", {14: OK, 15: OK}),
        )
        for case in limit(
            "ib.counters",
            f"{name} near its width",
            counter(name),
            means,
            earlier=[(60.0, counter(name)(254 if name == "link_error_recovery" else 14))],
        )
    ),
    *(
        case
        for name, most in (
            ("roce_slow_restart", 600),
            ("out_of_sequence", 600),
            ("local_ack_timeout_err", 60),
        )
        for case in limit(
            "roce.counters",
            f"{name} within a minute",
            congestion(name),
            {most: OK, most + 1: WARN},
            earlier=[(60.0, congestion(name)(0))],
        )
    ),
    *prints(
        "ib.cable",
        "raw error rate",
        lambda x: {"mlxlink": _link(**{"Raw Physical BER": x, "Status Opcode": "0"})},
        {"1E-5": OK, "1.01E-5": WARN},
    ),
    *prints(
        "ib.cable",
        "effective error rate",
        lambda x: {"mlxlink": _link(**{"Effective Physical BER": x, "Status Opcode": "0"})},
        {"1E-12": OK, "1.01E-12": WARN},
    ),
    *prints(
        "ib.cable",
        "degrees",
        lambda x: {
            "mlxlink": _link(**{"Raw Physical BER": "0", "Temperature [C]": f"{x} [-5..75]"})
        },
        {74: OK, 75: WARN},
    ),
    *prints(
        "ib.cable",
        "opcode",
        lambda x: {"mlxlink": _link(**{"Raw Physical BER": "0", "Status Opcode": x})},
        {"0": OK, "N/A": OK, "2": WARN, "1024": WARN},
    ),
    *(
        case
        for role, there in (("fabric", 8), ("storage", 2))
        for n, status in ((there, OK), (there + 1, FAIL))
        for case in limit(
            "ib.missing", f"{role} ports wanted", lambda _: both(), {n: status}, options={role: n}
        )
    ),
    *limit(
        "nic.fw",
        "of eight ports of another board",
        lambda n: both(*(wrote(f"{IB}/mlx5_{i}/board_id", "MT_other") for i in range(n))),
        {0: OK, 1: WARN, 2: WARN, 3: OK},
    ),
]


def raid(level: str, members: str) -> Change:
    head = f"md0 : active {level} nvme1n1p1[1] nvme0n1p1[0]"
    return wrote("proc/mdstat", f"Personalities : [{level}]\n{head}\n      9 blocks {members}")


def state(word: str) -> Change:
    return wrote("sys/class/nvme/nvme0/state", word)


DISKS = [
    *(
        case
        for word in ("new", "resetting", "connecting")
        for case in lasting("nvme", word, state(word), {59.0: WARN, 60.0: FAIL})
    ),
    *limit("nvme", "state", state, {"live": OK, "dead": FAIL, "deleting": FAIL}),
    *limit("nvme", "disks wanted", lambda _: both(), {1: OK}, options={"count": 1}),
    *limit("nvme", "disks wanted", lambda _: both(), {2: FAIL}, options={"count": 2}),
    *prints(
        "nvme.smart",
        "critical warning",
        lambda x: {"nvme": _smart(critical_warning=x)},
        {0: OK, 1: FAIL, 2: WARN, 4: FAIL, 8: FAIL, 16: FAIL, 32: FAIL, 64: WARN},
    ),
    *prints(
        "nvme.smart",
        "per cent of its life",
        lambda x: {"nvme": _smart(percent_used=x)},
        {99: OK, 100: WARN},
    ),
    *prints(
        "nvme.smart",
        "per cent of spare blocks",
        lambda x: {"nvme": _smart(avail_spare=x)},
        {10: OK, 9: FAIL},
    ),
    *(
        case
        for level, status in (
            ("raid1", WARN),
            ("raid6", WARN),
            ("raid10", WARN),
            ("raid0", FAIL),
            ("linear", FAIL),
        )
        for case in limit(
            "md",
            f"members of {level}",
            lambda members, level=level: raid(level, members),
            {"[2/2] [UU]": OK, "[2/1] [U_]": status},
        )
    ),
]


def mounted(point: str, kind: str = "ext4") -> Change:
    """One more file system, which has a folder."""
    line = f"77 29 8:77 / {point} rw - {kind} /dev/sdz9 rw"
    return both(
        lambda tree: tree.write(
            "proc/self/mountinfo", f"{tree.read('proc/self/mountinfo')}\n{line}"
        ),
        wrote(f"{point.lstrip('/')}/x", ""),
    )


# Every file system has as much as it may have: what is looked at is a WARN.
USED: dict[str, Any] = {"options": {"warn_percent": 0, "fail_percent": 101, "needed": ["/data"]}}
_KINDS = "ext4 ext3 ext2 xfs btrfs zfs tmpfs overlay f2fs"
_NEEDED = "/home /root /run /tmp /var /var/lib /var/log /var/tmp"
_OTHERS = (
    "/proc/x /sys/x /run/user/0 /run/credentials/x /run/netns /run/containerd/x /run/docker/x "
    "/run/containers/x /var/lib/kubelet/x /var/lib/docker/x /var/lib/containerd/x "
    "/var/lib/containers/x /snap/x"
)
FILES = [
    *limit(
        "fs.local",
        "kind",
        lambda kind: mounted("/data", kind),
        {**dict.fromkeys(_KINDS.split(), WARN), "squashfs": OK, "iso9660": OK, "vfat": OK},
        **USED,
    ),
    *(
        case
        for point in _NEEDED.split()
        for case in limit(
            "fs.local",
            "place of logs and code",
            mounted,
            {point: WARN},
            on=point,
            options={"warn_percent": 0, "fail_percent": 101},
        )
    ),
    *limit(
        "fs.local",
        "place that may be full",
        mounted,
        {"/boot": OK, "/scratch": OK, "/var/cache": OK},
        options={"warn_percent": 0, "fail_percent": 101, "needed": ["/elsewhere"]},
    ),
    *(
        case
        for point in _OTHERS.split()
        for case in limit(
            "fs.local",
            "place of others",
            mounted,
            {point: OK},
            options={"warn_percent": 0, "fail_percent": 101, "needed": [point]},
        )
    ),
    *limit(
        "fs.local",
        "per cent to fail at",
        lambda _: mounted("/data"),
        {0: FAIL},
        options={"warn_percent": 0, "fail_percent": 0, "needed": ["/data"]},
    ),
]


def edac(corrected: int) -> Change:
    mc = "sys/devices/system/edac/mc/mc0"
    return both(wrote(f"{mc}/ue_count", "0"), wrote(f"{mc}/ce_count", str(corrected)))


def _starts(word: str) -> dict[str, str]:
    return {"systemctl": f"#!/bin/sh\necho {word}; exit 3\n"}


def _systemd(tree: Tree) -> None:
    tree.write("run/systemd/system/x", "")


HOST = [
    *lasting("dstate", "asleep", asleep("python"), {299.0: OK, 300.0: WARN}),
    *limit(
        "mem.poison",
        "corrected errors within an hour",
        edac,
        {99: OK, 100: WARN},
        earlier=[(HOUR, edac(0))],
    ),
    *limit(
        "mem.poison",
        "corrected errors within two hours",
        edac,
        {199: OK, 200: WARN},
        earlier=[(2 * HOUR, edac(0))],
    ),
    *limit(
        "mem.poison",
        "corrected errors within a minute",
        edac,
        {99: OK, 100: WARN},
        earlier=[(60.0, edac(0))],
    ),
    *limit("mem.poison", "corrected errors before the first look", edac, {0: OK, 1: UNKNOWN}),
    *prints(
        "slurm.drift",
        "MiB that slurm.conf gives of 2063927",
        lambda x: _slurm(memory=x),
        {2_063_927: OK, 2_063_928: FAIL, 1_857_535: OK, 1_857_534: WARN},
    ),
    *prints("slurm.drift", "GPUs of Gres", lambda x: _slurm(gpus=x), {8: OK, 7: WARN, 9: FAIL}),
    *(
        case
        for word in ("activating", "reloading", "deactivating", "refreshing", "maintenance")
        for case in lasting(
            "services",
            word,
            _systemd,
            {59.0: WARN, 60.0: FAIL},
            programs=_starts(word),
            options={"units": ["slurmd"]},
        )
    ),
]

NODE = [*PORTS, *DISKS, *FILES, *HOST]
