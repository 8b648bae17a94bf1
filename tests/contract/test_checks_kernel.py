"""Health checks that read the kernel's log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from checks import NOW, Case, Change, both, each_of, garbled, looks, lost, run, wrote

from healthchecks.check import Status
from healthchecks.context import Ctx, Memory
from healthchecks.lane import Probe, look
from healthchecks.registry import registered
from tests.hardware.tree import GPU_BDFS, Tree

UP_S = 864_000.0  # of the healthy node
DAY_S = 86_400.0


def logged(*lines: str, ago_s: float = 60.0) -> Change:
    """The kernel wrote these some time before NOW."""

    def do(tree: Tree) -> None:
        log = tree.read("dev/kmsg")
        number = log.count("\n") + 1
        at_us = int((UP_S - ago_s) * 1e6)
        rows = [f"4,{number + i},{at_us + i},-;{line}" for i, line in enumerate(lines)]
        tree.write("dev/kmsg", "\n".join([log, *rows]))

    return do


def at_uptime(ago_s: float) -> Change:
    """The node as it was so many seconds before NOW."""
    return wrote("proc/uptime", f"{UP_S - ago_s} 1.0")


def xid(code: int, gpu: int = 3, text: str = "pid=4242, name=python3, Ch 00000008") -> str:
    return f"NVRM: Xid (PCI:{GPU_BDFS[gpu].rpartition('.')[0]}): {code}, {text}"


def recovery(was: str, now: str, gpu: int = 3) -> str:
    return xid(154, gpu, f"GPU recovery action changed from {was} to {now}")


_NONE, _RESET, _REBOOT = "0x0 (None)", "0x1 (GPU Reset Required)", "0x2 (Node Reboot Required)"
_LINK_DOWN = "NETIR_LINK_EVT Fatal XC0 i0 Link 08 (0x004505c6 0x00000000 0x0 0x0)"
_FOLLOW = "RLW_SRC_TRACK Nonfatal XC1 i0 Link 12 (0x040988e2 0x00000008 0x0 0x0)"


def at_times(code: int, gpus: Sequence[int], *ago_s: float) -> Change:
    return both(*(logged(*(xid(code, gpu) for gpu in gpus), ago_s=ago) for ago in ago_s))


XID = [
    Case(check="xid", name="healthy", status=Status.OK, seen="no Xid in the kernel's log, which"),
    Case(
        check="xid",
        name="off the bus",
        change=logged(xid(79, text="GPU has fallen off the bus.")),
        status=Status.FAIL,
        seen="gpu3: Xid 79 GPU has fallen off the bus (0000:4e:00, 20",
    ),
    Case(
        check="xid",
        name="gsp timeout long ago in this boot",
        change=logged(xid(119), ago_s=9 * DAY_S),
        status=Status.FAIL,
        seen="Xid 119",
    ),
    Case(
        check="xid",
        name="stays when there is nothing new",
        earlier=[(3 * DAY_S, both(at_uptime(3 * DAY_S), logged(xid(95), ago_s=3 * DAY_S + 9)))],
        change=both(at_uptime(0), wrote("dev/kmsg", "6,900,863000000000,-;all the old is gone")),
        status=Status.FAIL,
        seen="Xid 95",
    ),
    Case(
        check="xid",
        name="stays when the log can't be read any more",
        earlier=[(60, logged(xid(95)))],
        change=lost("dev/kmsg"),
        status=Status.FAIL,
        seen="Xid 95",
    ),
    Case(
        check="xid",
        name="cured as the driver says",
        change=both(
            logged(xid(119), recovery(_NONE, _RESET), ago_s=900),
            logged(recovery(_RESET, _NONE), ago_s=300),
        ),
        status=Status.OK,
        seen="3 Xids, none of which needs anything now",
    ),
    Case(
        check="xid",
        name="cured by a new start of the driver",
        change=both(
            logged(xid(119), recovery(_NONE, _RESET), ago_s=900),
            logged("NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580", ago_s=300),
        ),
        status=Status.OK,
    ),
    Case(
        check="xid",
        name="a new start of the driver does not cure a lost GPU",
        change=both(
            logged(xid(79), ago_s=900),
            logged("NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580", ago_s=300),
        ),
        status=Status.FAIL,
    ),
    Case(
        check="xid",
        name="another GPU's cure is not this one's",
        change=both(logged(xid(119), ago_s=900), logged(recovery(_RESET, _NONE, gpu=4), ago_s=300)),
        status=Status.FAIL,
        seen="gpu3: Xid 119",
    ),
    Case(
        check="xid",
        name="recovery action alone",
        change=logged(recovery(_NONE, _RESET)),
        status=Status.FAIL,
        seen="recovery action is now GPU Reset Required",
    ),
    Case(
        check="xid",
        name="nvlink 5 link down",
        change=logged(xid(149, text=_LINK_DOWN)),
        status=Status.FAIL,
        seen="Xid 149 NETIR_LINK_EVT.4 NVLink error, link 08",
    ),
    Case(
        check="xid",
        name="nvlink 5 asks for the recovery action",
        change=logged(xid(145, text=_FOLLOW)),
        status=Status.WARN,
        seen="Xid 145 RLW_SRC_TRACK.0",
    ),
    Case(
        check="xid",
        name="nvlink 5 of a reset is not outdone by one to ignore",
        change=logged(
            xid(145, text="RLW_REMAP Fatal XC0 i0 Link 00 (0x00000004 0x00000040 0x0)"),
            xid(145, text="RLW_REMAP Nonfatal XC0 i0 Link 00 (0x00000004 0x00000100 0x0)"),
        ),
        status=Status.FAIL,
    ),
    Case(
        check="xid",
        name="application once",
        change=logged(xid(31)),
        status=Status.WARN,
        seen="Xid 31 GPU memory page fault",
    ),
    Case(
        check="xid",
        name="application yesterday",
        change=logged(xid(31), ago_s=DAY_S + 60),
        status=Status.OK,
    ),
    Case(
        check="xid",
        name="application within a longer window",
        change=logged(xid(31), ago_s=DAY_S + 60),
        options={"window_h": 48},
        status=Status.WARN,
    ),
    Case(
        check="xid",
        name="application again and again on one GPU",
        change=at_times(13, [3], 9000, 6000, 3000),
        status=Status.FAIL,
        seen="again and again on this GPU",
    ),
    Case(
        check="xid",
        name="application again and again in one minute is once",
        change=at_times(13, [3], 160, 130, 110, 70),
        status=Status.WARN,
    ),
    Case(
        check="xid",
        name="application again and again on all GPUs is the application",
        change=at_times(31, range(8), 9000, 6000, 3000),
        status=Status.WARN,
    ),
    Case(
        check="xid",
        name="torn down alone",
        change=logged(xid(45)),
        status=Status.WARN,
        seen="Xid 45 channel torn down",
    ),
    Case(
        check="xid",
        name="torn down after another error",
        change=logged(xid(31, gpu=5), xid(45), xid(43)),
        status=Status.WARN,
        seen="gpu5: Xid 31",
    ),
    Case(
        check="xid",
        name="contained once",
        change=logged(xid(94), xid(63, text="Row Remapper: New row marked for remapping")),
        status=Status.WARN,
        seen="Xid 94 contained memory error",
    ),
    Case(
        check="xid",
        name="contained twice",
        change=both(logged(xid(94), ago_s=5 * DAY_S), logged(xid(94))),
        status=Status.FAIL,
        seen="2 incidents and 0 row remappings in 28 days",
    ),
    Case(
        check="xid",
        name="contained once in each of two boots",
        memory={
            "lasting": {
                "recurring": [
                    {
                        "device": "0000:4e:00",
                        "code": 94,
                        "name": "Xid 94",
                        "act": "restart the application, once",
                        "meaning": "contained memory error",
                        "fix": "…",
                        "first": NOW - 12 * DAY_S,
                        "last": NOW - 12 * DAY_S,
                        "count": 1,
                        "recovery": None,
                        "episodes": [NOW - 12 * DAY_S],
                    }
                ]
            }
        },
        change=logged(xid(94)),
        status=Status.FAIL,
        seen="2 incidents",
    ),
    Case(
        check="xid",
        name="contained and rows remapped again",
        change=both(logged(xid(63), ago_s=5 * DAY_S), logged(xid(63), xid(94))),
        status=Status.FAIL,
        seen="1 incidents and 2 row remappings",
    ),
    Case(check="xid", name="remapped", change=logged(xid(63)), status=Status.OK, seen="1 Xids"),
    Case(
        check="xid",
        name="unknown code",
        change=logged(xid(999)),
        status=Status.WARN,
        seen="Xid 999 not in the catalog",
    ),
    Case(
        check="xid",
        name="unknown code that the site knows",
        change=logged(xid(999)),
        options={"ignore": [999]},
        status=Status.OK,
    ),
    Case(
        check="xid",
        name="switch fatal",
        change=logged(
            "nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 20034, Fatal, Link 30 LTSSM Fault Up"
        ),
        status=Status.FAIL,
        seen="nvswitch0: SXid 20034 NVSwitch fatal error",
    ),
    Case(
        check="xid",
        name="switch not fatal",
        change=logged(
            "nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, Non-fatal, Link 32 egress error"
        ),
        status=Status.WARN,
        seen="nvswitch3: SXid 12028",
    ),
    Case(
        check="xid",
        name="lines lost",
        earlier=[(60, logged("seen"))],
        change=wrote("dev/kmsg", "6,900,863999000000,-;much later"),
        status=Status.WARN,
        seen="894 lines of the kernel's log were overwritten",
    ),
    Case(check="xid", name="no log", change=lost("dev/kmsg"), status=Status.UNKNOWN),
    Case(check="xid", name="garbled log", change=garbled("dev/kmsg"), status=Status.UNKNOWN),
    Case(
        check="xid",
        name="no driver",
        change=lost("proc/driver/nvidia/gpus"),
        status=Status.SKIP,
    ),
    Case(
        check="xid",
        name="no driver any more but an error",
        change=both(lost("proc/driver/nvidia/gpus"), logged(xid(79))),
        status=Status.FAIL,
        seen="0000:4e:00: Xid 79",
    ),
]

CASES: list[Case] = [*XID]


@each_of(CASES)
def test_case(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path)


def _fix(*lines: str, tmp_path: Path) -> str:
    case = Case(check="xid", name="", status=Status.FAIL, change=logged(*lines))
    return looks(case, tmp_path)[-1].fix


def test_the_recovery_action_overrides_the_table(tmp_path: Path) -> None:
    assert "reset the GPU" in _fix(xid(119), tmp_path=tmp_path)
    assert _fix(xid(119), recovery(_NONE, _REBOOT), tmp_path=tmp_path) == (
        "drain the node and reboot it"
    )


def test_what_two_reboots_did_not_cure_asks_for_hardware(tmp_path: Path) -> None:
    memory: dict[str, object] = {}
    fixes = []
    (tmp_path / "dev").mkdir()
    (tmp_path / "proc/driver/nvidia/gpus/0000:4e:00.0").mkdir(parents=True)
    (tmp_path / "proc/uptime").write_text("1000.0 1.0")
    (tmp_path / "dev/kmsg").write_text("4,7,900000000,-;NVRM: Xid (PCI:0000:4e:00): 119, Timeout\n")
    for boot in range(3):
        kept = Memory(memory, NOW)
        now = NOW + boot * DAY_S
        ctx = Ctx(root=tmp_path, node="n", now=now, boot_id=f"boot{boot}", memory=kept)
        result = look(Probe(check=registered()["xid"], on="", options={}), ctx)
        assert result.status is Status.FAIL
        assert result.devices == ("gpu0",)
        fixes.append(result.fix)
        memory = {"lasting": kept.data["lasting"]}
    assert "replaced" not in fixes[1]
    assert "3 boots in 28 days did not cure it" in fixes[2]


@pytest.mark.parametrize("again", [False, True])
def test_memory_stays_small_whatever_the_log_holds(tmp_path: Path, again: bool) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/uptime").write_text("100000.0 1.0")
    (tmp_path / "dev/kmsg").write_text(
        "".join(
            f"4,{n},{n * 400_000},-;NVRM: Xid (PCI:0000:{n % 200:02x}:00): {n % 200}, pid={n}\n"
            for n in range(40_000)
        )
    )
    memory = Memory({}, NOW)
    for _ in range(2 if again else 1):
        ctx = Ctx(root=tmp_path, node="n", now=NOW, boot_id="b", memory=memory)
        result = look(Probe(check=registered()["xid"], on="", options={}), ctx)
        assert result.status is Status.FAIL
    assert len(str(memory.data)) < 400_000
