"""Network mounts: each defect on a tree of files. What hangs is in tests/local/test_hung_mounts."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from checks import NOW, Case, Change, both, each_of, garbled, looks, lost, nothing, run, wrote

from healthchecks.frame.check import Status
from tests.hardware.tree import Tree
from tests.hardware.tree_os import NFS_OPTIONS, mountstats

INFO = "proc/self/mountinfo"
STATS = "proc/self/mountstats"
SHARED = {"path": "/shared", "source": "10.0.0.5:/export/shared", "fstype": "nfs4"}
# Doors: one is open, at one nobody listens, one is full and drops whoever knocks.
OPEN = socket.create_server(("127.0.0.1", 0))
SHUT = socket.socket()
SHUT.bind(("127.0.0.1", 0))
FULL = socket.create_server(("127.0.0.1", 0), backlog=0)
WAITING = [socket.create_connection(FULL.getsockname())]


def info(old: str, new: str) -> Change:
    return lambda tree: tree.change(INFO, old, new)


def also(line: str) -> Change:
    """One more line of mountinfo."""
    return lambda tree: tree.write(INFO, f"{tree.read(INFO)}\n{line}")


def unmounted(tree: Tree) -> None:
    kept = [line for line in tree.read(INFO).splitlines() if " /shared " not in line]
    tree.write(INFO, "\n".join(kept))


def at(door: socket.socket) -> Change:
    """The server is at this door of this machine."""
    return info("addr=10.0.0.5", f"addr=127.0.0.1,port={door.getsockname()[1]}")


def port(door: socket.socket) -> str:
    return str(door.getsockname()[1])


MOUNTED = [
    Case(check="nfs.mounted", name="as fstab says", status=Status.OK, seen="1 mounts as they"),
    Case(
        check="nfs.mounted",
        name="as configured",
        options={"mounts": [{**SHARED, "options": ["rw", "hard", "nconnect=16", "nfsvers=4.1"]}]},
        status=Status.OK,
    ),
    Case(
        check="nfs.mounted",
        name="nfs means nfs4 too and a slash at the end means nothing",
        options={
            "mounts": [
                {
                    **SHARED,
                    "fstype": "nfs",
                    "source": "10.0.0.5:/export/shared/",
                    "path": "/shared/",
                }
            ]
        },
        status=Status.OK,
    ),
    Case(
        check="nfs.mounted",
        name="mounted when used",
        change=both(unmounted, also("40 29 0:50 / /shared rw - autofs auto.direct rw,direct")),
        status=Status.OK,
        seen="/shared: mounted by autofs when used",
    ),
    Case(
        check="nfs.mounted",
        name="over its automount",
        change=both(
            unmounted,
            also("40 29 0:50 / /shared rw - autofs auto.direct rw,direct"),
            also(f"41 40 0:40 / /shared rw - nfs4 10.0.0.5:/export/shared {NFS_OPTIONS}"),
        ),
        status=Status.OK,
        seen="1 mounts",
    ),
    Case(
        check="nfs.mounted",
        name="not mounted",
        change=unmounted,
        status=Status.FAIL,
        seen="/shared: not mounted",
        shared="nfs server 10.0.0.5",
    ),
    Case(
        check="nfs.mounted",
        name="not mounted and its server has other mounts",
        change=both(unmounted, also("40 29 0:50 / /x rw - nfs4 stor:/x rw,addr=10.0.0.5")),
        status=Status.FAIL,
        seen="/shared: not mounted",
        shared="nfs server stor (10.0.0.5)",
    ),
    Case(
        check="nfs.mounted",
        name="another kind not mounted",
        options={"mounts": [{"path": "/lu", "source": "10.0.0.9@o2ib:/lu", "fstype": "lustre"}]},
        status=Status.FAIL,
        seen="/lu: not mounted",
        shared="lustre 10.0.0.9@o2ib:/lu",
    ),
    Case(
        check="nfs.mounted",
        name="not mounted from wherever",
        options={"mounts": [{"path": "/data"}]},
        status=Status.FAIL,
        seen="/data: not mounted",
        shared="",
    ),
    Case(
        check="nfs.mounted",
        name="another source",
        change=info("10.0.0.5:/export/shared", "10.0.0.6:/export/old"),
        status=Status.FAIL,
        seen="/shared: 10.0.0.6:/export/old is mounted",
    ),
    Case(
        check="nfs.mounted",
        name="another type",
        change=info("- nfs4", "- nfs"),
        options={"mounts": [SHARED]},
        status=Status.FAIL,
        seen="/shared: it is nfs",
    ),
    Case(
        check="nfs.mounted",
        name="mount is read-only",
        change=info("/shared rw,relatime", "/shared ro,relatime"),
        status=Status.FAIL,
        seen="/shared: read-only",
    ),
    Case(
        check="nfs.mounted",
        name="file system is read-only",
        change=info("10.0.0.5:/export/shared rw,", "10.0.0.5:/export/shared ro,"),
        status=Status.FAIL,
        seen="/shared: read-only",
    ),
    Case(
        check="nfs.mounted",
        name="read-only where that is wanted",
        change=both(
            info("/shared rw,relatime", "/shared ro,relatime"),
            wrote("etc/fstab", "10.0.0.5:/export/shared /shared nfs4 ro,hard 0 0"),
        ),
        status=Status.OK,
    ),
    Case(
        check="nfs.mounted",
        name="another value of an option",
        change=info("nconnect=16", "nconnect=2"),
        options={"mounts": [{"path": "/shared", "options": ["nconnect=16", "hard"]}]},
        status=Status.FAIL,
        seen="/shared: nconnect=2",
    ),
    Case(
        check="nfs.mounted",
        name="lacking options",
        change=both(info("nconnect=16,", ""), info("hard", "soft")),
        options={"mounts": [{"path": "/shared", "options": ["nconnect=16", "hard", "nolock"]}]},
        status=Status.FAIL,
        seen="/shared: no nconnect, soft, no nolock",
    ),
    Case(
        check="nfs.mounted",
        name="hidden by a mount over it",
        change=also("41 31 0:51 / /shared rw - tmpfs tmpfs rw"),
        status=Status.FAIL,
        seen="10.0.0.5:/export/shared is mounted but hidden: tmpfs (tmpfs) was mounted over it",
    ),
    Case(
        check="nfs.mounted",
        name="hidden by a mount over its parent",
        change=both(
            info("/ /shared ", "/ /data/shared "), also("41 29 0:51 / /data rw - tmpfs scratch rw")
        ),
        options={"mounts": [{"path": "/data/shared"}]},
        status=Status.FAIL,
        seen="is mounted but hidden: scratch (tmpfs) was mounted over /data",
    ),
    Case(
        check="nfs.mounted",
        name="mounted twice",
        change=also(f"41 31 0:40 / /shared rw - nfs4 10.0.0.5:/export/shared {NFS_OPTIONS}"),
        status=Status.WARN,
        seen="/shared: mounted 2 times",
    ),
    Case(check="nfs.mounted", name="no mountinfo", change=garbled(INFO), status=Status.UNKNOWN),
    Case(
        check="nfs.mounted",
        name="a line that is none",
        change=also("41 31 what"),
        status=Status.UNKNOWN,
        seen="'41 31 what'",
    ),
    Case(
        check="nfs.mounted",
        name="fstab can't be read",
        change=garbled("etc/fstab"),
        status=Status.UNKNOWN,
    ),
    Case(
        check="nfs.mounted",
        name="no full path",
        options={"mounts": [{"path": "shared"}]},
        status=Status.UNKNOWN,
        seen="a mount is named by its full path",
    ),
    Case(
        check="nfs.mounted",
        name="no network mount in fstab",
        change=wrote("etc/fstab", "/dev/vda1 / ext4 defaults 0 1\nnas:/x /x nfs noauto 0 0"),
        status=Status.SKIP,
        seen="no mounts are configured",
    ),
    Case(check="nfs.mounted", name="no fstab", change=lost("etc/fstab"), status=Status.SKIP),
]

GATE = [
    Case(check="nfs.gate", name="open", change=at(OPEN), status=Status.OK, seen="accepts"),
    Case(
        check="nfs.gate",
        name="configured",
        options={"servers": [f"127.0.0.1:{port(OPEN)}"]},
        status=Status.OK,
    ),
    Case(
        check="nfs.gate",
        name="refused",
        change=at(SHUT),
        status=Status.FAIL,
        seen="nothing listens there",
    ),
    Case(
        check="nfs.gate",
        name="no answer",
        change=at(FULL),
        options={"timeout_s": "0.05"},
        status=Status.FAIL,
        seen="no answer within 0.05 s",
    ),
    Case(
        check="nfs.gate",
        name="one of two",
        change=at(OPEN),
        options={"servers": [f"127.0.0.1:{port(SHUT)}"]},
        status=Status.FAIL,
    ),
    Case(
        check="nfs.gate",
        name="slow",
        change=at(OPEN),
        options={"slow_ms": "0"},
        status=Status.WARN,
        seen="connected after",
    ),
    Case(
        check="nfs.gate",
        name="not mounted because it is dead",
        change=both(unmounted, wrote("etc/fstab", "127.0.0.1:/export /shared nfs4 rw 0 0")),
        status=Status.FAIL,
        seen="127.0.0.1:2049: the server is up, but nothing listens",
    ),
    Case(
        check="nfs.gate",
        name="no such name",
        options={"servers": ["no..host"]},
        status=Status.UNKNOWN,
        seen="has no address",
    ),
    Case(
        check="nfs.gate",
        name="no address",
        options={"servers": ["nas:nfs"]},
        status=Status.UNKNOWN,
        seen="nas:nfs is no HOST",
    ),
    Case(check="nfs.gate", name="no mountinfo", change=garbled(INFO), status=Status.UNKNOWN),
    Case(
        check="nfs.gate",
        name="rdma has no door",
        change=both(at(SHUT), info("proto=tcp", "proto=rdma")),
        status=Status.SKIP,
    ),
    Case(check="nfs.gate", name="nothing mounted", change=unmounted, status=Status.SKIP),
]

ALIVE = [
    Case(check="nfs.alive", name="answers", status=Status.OK, seen="answers, "),
    Case(
        check="nfs.alive",
        name="read and written",
        change=both(at(OPEN), wrote("shared/canary", "sings")),
        options={"canaries": ["/shared/canary"], "write": ["/shared"]},
        status=Status.OK,
    ),
    Case(
        check="nfs.alive",
        name="not written where it is read-only",
        change=info("/shared rw,relatime", "/shared ro,relatime"),
        options={"write": ["/shared/nowhere"]},
        status=Status.OK,
    ),
    Case(
        check="nfs.alive",
        name="nowhere to write",
        options={"write": ["/shared/nowhere"]},
        status=Status.FAIL,
        seen="write /shared/nowhere: it is not there (ENOENT 2)",
    ),
    Case(
        check="nfs.alive",
        name="somebody put a link where we write",
        change=lambda tree: tree.link("shared/write", "proc"),
        options={"write": ["/shared/write"]},
        status=Status.UNKNOWN,
        seen="shared/write is a link, or behind what is no folder",
    ),
    Case(
        check="nfs.alive",
        name="somebody put a link at the canary's name",
        change=lambda tree: tree.link("shared/canary", "proc/meminfo"),
        options={"canaries": ["/shared/canary"]},
        status=Status.UNKNOWN,
        seen="shared/canary is no regular file",
    ),
    Case(
        check="nfs.alive",
        name="a folder stands at our file's name",
        change=both(at(OPEN), wrote("shared/.superv-alive-n1/his", "here first")),
        options={"write": ["/shared"]},
        status=Status.OK,
    ),
    Case(
        check="nfs.alive",
        name="no canary",
        options={"canaries": ["/shared/canary"]},
        status=Status.FAIL,
        seen="canary /shared/canary: it is not there (ENOENT 2): another export is mounted",
    ),
    Case(
        check="nfs.alive",
        name="another mount's canary is none of its business",
        options={"canaries": ["/other/canary"]},
        status=Status.OK,
    ),
    Case(
        check="nfs.alive",
        name="slow",
        options={"slow_ms": "0"},
        status=Status.WARN,
        seen=" took 0 ms",
    ),
    Case(
        check="nfs.alive",
        name="too slow",
        options={"slow_ms": "0", "fail_ms": "0"},
        earlier=[(60.0, nothing)],
        status=Status.FAIL,
    ),
    Case(
        check="nfs.alive",
        name="not touched where the door is shut",
        change=at(SHUT),
        status=Status.UNKNOWN,
        seen="not tried, so that nobody hangs: nfs server 10.0.0.5 (127.0.0.1) takes no connection",
    ),
    Case(
        check="nfs.alive",
        name="a local folder",
        options={"paths": ["/home"]},
        status=Status.UNKNOWN,
        seen="/home: no network file system is mounted there",
    ),
    Case(check="nfs.alive", name="no mountinfo", change=garbled(INFO), status=Status.UNKNOWN),
    Case(check="nfs.alive", name="nothing mounted", change=unmounted, status=Status.SKIP),
    Case(
        check="nfs.alive",
        name="a user's own mount",
        change=both(
            unmounted,
            also("41 29 0:51 / /home/a/m rw - fuse.sshfs a@b:/ rw,user_id=1000,group_id=1000"),
        ),
        status=Status.SKIP,
    ),
]


def counted(age: int = 864_060, write: str = "1000 1000 0 1 1 2000 90000 93000 0") -> Change:
    """mountstats, by default a minute after those of the healthy node and nothing done since."""
    text = mountstats(write=write).replace("age:\t864000", f"age:\t{age}")
    return wrote(STATS, text)


def logged(*records: tuple[float, str]) -> Change:
    """The kernel's log; seconds ago and text. The healthy node has been up for ten days."""
    lines = [
        f"3,{n},{int((864_000 - ago) * 1e6)},-;{text}"
        for n, (ago, text) in enumerate(records, start=100)
    ]
    return lambda tree: tree.write("dev/kmsg", "\n".join([tree.read("dev/kmsg"), *lines]))


def up(ago: float) -> Change:
    """As long up as the healthy node was so many seconds ago."""
    return wrote("proc/uptime", f"{864_000 - ago} 1.0")


SILENT = "nfs: server 10.0.0.5 not responding, still trying"
ANSWERED = "nfs: server 10.0.0.5 OK"
BEFORE = [(60.0, counted(864_000))]

PASSIVE = [
    Case(check="nfs.passive", name="first look", status=Status.UNKNOWN, seen="first look"),
    Case(
        check="nfs.passive",
        name="work was done",
        earlier=BEFORE,
        change=counted(write="9000 9000 0 1 1 4000 990000 993000 0"),
        status=Status.OK,
        seen="no timeouts",
    ),
    Case(
        check="nfs.passive",
        name="mounted afresh meanwhile",
        earlier=[(60, counted(864_000, "1000 1000 7 1 1 1 1 1 0"))],
        change=counted(30, "5 5 9 1 1 1 1 1 0"),
        status=Status.UNKNOWN,
        seen="first look",
    ),
    Case(
        check="nfs.passive",
        name="timeouts",
        earlier=BEFORE,
        change=counted(write="1003 1009 3 1 1 2000 180000 183000 0"),
        status=Status.WARN,
        seen="3 timeouts on /shared in 60 s",
    ),
    Case(
        check="nfs.passive",
        name="timeouts that go on",
        earlier=[
            (130, counted(864_000)),
            (70, counted(864_060, "1003 1009 3 1 1 2000 180000 183000 0")),
        ],
        change=counted(864_130, "1004 1012 5 1 1 2000 240000 243000 0"),
        status=Status.FAIL,
        seen="2 timeouts on /shared in 70 s, for 70 s",
    ),
    Case(
        check="nfs.passive",
        name="timeouts that ended",
        earlier=[
            (130, counted(864_000)),
            (70, counted(864_060, "1003 1009 3 1 1 2000 180000 183000 0")),
        ],
        change=counted(864_130, "1004 1010 3 1 1 2000 180001 183002 0"),
        status=Status.OK,
    ),
    Case(
        check="nfs.passive",
        name="the client's own queue",
        earlier=BEFORE,
        change=counted(write="2000 2000 0 1 1 9312000 690000 10003000 0"),
        status=Status.WARN,
        seen="a WRITE takes 9910 ms, 93.9 % of it in this client's own queue",
    ),
    Case(
        check="nfs.passive",
        name="a queue that costs nothing",
        earlier=BEFORE,
        change=counted(write="2000 2000 0 1 1 11000 91000 103000 0"),
        status=Status.OK,
    ),
    Case(
        check="nfs.passive",
        name="a clock that stepped",
        earlier=BEFORE,
        change=counted(write=f"2000 2000 0 1 1 {2**64 - 5} 690000 10003000 0"),
        status=Status.OK,
    ),
    Case(
        check="nfs.passive",
        name="sent again",
        earlier=BEFORE,
        change=counted(write="2000 2030 0 1 1 2000 90000 93000 0"),
        status=Status.WARN,
        seen="/shared: 3.0 % of its messages were sent again",
    ),
    Case(
        check="nfs.passive",
        name="silent",
        earlier=BEFORE,
        change=logged((20, SILENT)),
        status=Status.WARN,
        seen="kernel: nfs: server 10.0.0.5 not responding, for 20 s",
    ),
    Case(
        check="nfs.passive",
        name="silent for long",
        change=logged((600, SILENT), (90, SILENT), (80, "nfs: server 10.0.0.6 OK")),
        status=Status.FAIL,
        seen="not responding, for 600 s",
    ),
    Case(
        check="nfs.passive",
        name="silent since an earlier look",
        earlier=[(90, both(counted(864_000), logged((100, SILENT)), up(90)))],
        change=up(0),
        status=Status.FAIL,
        seen="not responding, for 100 s",
    ),
    Case(
        check="nfs.passive",
        name="answered",
        earlier=BEFORE,
        change=both(counted(), logged((600, SILENT), (500, ANSWERED))),
        status=Status.OK,
    ),
    Case(
        check="nfs.passive",
        name="answered and silent again",
        change=logged((600, SILENT), (500, ANSWERED), (30, SILENT)),
        status=Status.WARN,
        seen="for 30 s",
    ),
    Case(
        check="nfs.passive",
        name="its OK was lost but it works",
        earlier=[(90, both(counted(864_000), logged((100, SILENT)), up(90)))],
        change=both(counted(864_090, "9000 9000 0 1 1 4000 990000 993000 0"), up(0)),
        status=Status.OK,
    ),
    Case(
        check="nfs.passive",
        name="another server",
        earlier=BEFORE,
        change=both(counted(), logged((600, "nfs: server 10.0.0.55 not responding, still trying"))),
        status=Status.OK,
    ),
    Case(
        check="nfs.passive",
        name="locks lost",
        change=logged((600, "NFS: __nfs4_reclaim_open_state: Lock reclaim failed!")),
        status=Status.WARN,
        seen="Lock reclaim failed, 1 times",
    ),
    Case(
        check="nfs.passive",
        name="locks lost long ago",
        earlier=BEFORE,
        change=both(
            counted(), logged((9000, "NFS: __nfs4_reclaim_open_state: Lock reclaim failed!"))
        ),
        status=Status.OK,
    ),
    Case(check="nfs.passive", name="no mountstats", change=lost(STATS), status=Status.UNKNOWN),
    Case(
        check="nfs.passive",
        name="mountstats says nothing of it",
        change=wrote(STATS, "device /dev/vda1 mounted on / with fstype ext4"),
        status=Status.UNKNOWN,
        seen="/shared: /proc/self/mountstats says nothing of it",
    ),
    Case(
        check="nfs.passive",
        name="no kernel log",
        change=lost("dev/kmsg"),
        status=Status.UNKNOWN,
        seen="may not read the kernel's log",
    ),
    Case(
        check="nfs.passive",
        name="a soft mount gave up now",
        change=logged((600, "nfs: server 10.0.0.5 not responding, timed out")),
        status=Status.WARN,
        seen="timed out, 1 times within an hour",
    ),
    Case(
        check="nfs.passive",
        name="lockd waits for it",
        change=logged((90, "lockd: server 10.0.0.5 not responding, still trying")),
        status=Status.FAIL,
        seen="not responding, for 90 s",
    ),
    Case(check="nfs.passive", name="nothing mounted", change=unmounted, status=Status.SKIP),
]

OPTIONS = [
    Case(
        check="nfs.options",
        name="sound",
        status=Status.OK,
        seen="/shared: nfs4 vers=4.1,proto=tcp,nconnect=16,rsize=1048576,wsize=1048576,hard",
    ),
    Case(
        check="nfs.options",
        name="soft",
        change=info("hard", "soft"),
        status=Status.WARN,
        seen="/shared is a soft mount",
    ),
    Case(
        check="nfs.options",
        name="udp",
        change=info("proto=tcp", "proto=udp"),
        status=Status.WARN,
        seen="/shared is mounted over UDP",
    ),
    Case(check="nfs.options", name="no mountinfo", change=garbled(INFO), status=Status.UNKNOWN),
    Case(
        check="nfs.options",
        name="a setting that can't be read",
        change=garbled("proc/sys/sunrpc/tcp_max_slot_table_entries"),
        status=Status.UNKNOWN,
    ),
    Case(check="nfs.options", name="nothing mounted", change=unmounted, status=Status.SKIP),
]

SMALL = {"dir": "/shared", "size": "65536", "block": "4096", "writers": "2"}
WIDTH = [
    Case(
        check="storage.width",
        name="writes and reads",
        options=SMALL,
        status=Status.OK,
        seen="/shared: 2 files",
    ),
    Case(
        check="storage.width",
        name="less than it should",
        options=SMALL | {"least_read": "1e15"},
        status=Status.FAIL,
        seen="reads ",
    ),
    Case(
        check="storage.width",
        name="could be filled",
        options=SMALL | {"size": str(10**15)},
        status=Status.UNKNOWN,
        seen="lower size",
    ),
    Case(
        check="storage.width",
        name="no such directory",
        options=SMALL | {"dir": "/shared/nowhere"},
        status=Status.UNKNOWN,
        seen="No such file",
    ),
    Case(
        check="storage.width",
        name="a start too far away",
        options=SMALL | {"start_at": str(NOW * 2)},
        status=Status.UNKNOWN,
        seen="start_at is",
    ),
    Case(
        check="storage.width",
        name="no whole pages",
        options=SMALL | {"block": "5000"},
        status=Status.UNKNOWN,
    ),
    Case(check="storage.width", name="no directory given", status=Status.SKIP),
]

CASES = [*MOUNTED, *GATE, *ALIVE, *PASSIVE, *OPTIONS, *WIDTH]


@each_of(CASES)
def test_case(case: Case, tmp_path: Path) -> None:
    run(case, tmp_path)


@pytest.mark.parametrize(
    "case",
    [
        *(c for c in GATE if c.name in ("refused", "no answer")),
        *(c for c in ALIVE if c.name in ("no canary", "too slow")),
        *(c for c in PASSIVE if c.status in (Status.WARN, Status.FAIL)),
    ],
    ids=str,
)
def test_what_a_server_is_the_cause_of_names_it_alike_on_every_node(
    case: Case, tmp_path: Path
) -> None:
    found = looks(case, tmp_path)[-1]
    assert found.shared.startswith("nfs server 10.0.0.5")
    assert not found.devices


def test_the_probe_of_writing_leaves_nothing(tmp_path: Path) -> None:
    case = next(c for c in ALIVE if c.name == "read and written")
    for _ in range(2):
        assert looks(case, tmp_path)[-1].status is Status.OK
    case = next(c for c in WIDTH if c.status is Status.OK)
    metrics = looks(case, tmp_path)[-1].metrics
    assert metrics["write_bytes"].value == metrics["read_bytes"].value == 65536
    from tests.hardware.tree import borrowed

    with borrowed() as tree:
        assert [*tree.path("shared").iterdir()] == []


def test_the_facts_that_nodes_are_compared_by(tmp_path: Path) -> None:
    case = Case(
        check="nfs.options",
        name="facts",
        change=wrote("sys/class/bdi/0:40/read_ahead_kb", "128"),
        status=Status.OK,
    )
    facts = looks(case, tmp_path)[-1].facts
    assert facts["/shared nconnect"] == "16"
    assert facts["/shared vers"] == "4.1"
    assert facts["/shared read_ahead_kb"] == "128"
    assert facts["/shared flags"] == "hard,relatime,rw"
    assert facts["sunrpc/tcp_max_slot_table_entries"] == "65536"
    own = {"10.0.0.17", "10.0.0.5"}
    for path, name in (
        ("sys/module/nfs/parameters/max_session_slots", "nfs.max_session_slots"),
        ("sys/module/sunrpc/parameters/tcp_slot_table_entries", "sunrpc.tcp_slot_table_entries"),
        ("proc/sys/sunrpc/rdma_max_inline_read", "sunrpc/rdma_max_inline_read"),
    ):
        case = Case(check="nfs.options", name="facts", change=wrote(path, "7"), status=Status.OK)
        assert looks(case, tmp_path)[-1].facts[name] == "7"
    user_s = "rw,name=node17,mountaddr=10.0.0.17,clientaddr=10.0.0.17,conf=/etc/ceph/ceph.conf"
    case = Case(
        check="nfs.options",
        name="facts",
        change=also(f"77 29 0:77 / /c rw - ceph 10.0.0.5:/ {user_s}"),
        status=Status.OK,
    )
    others = looks(case, tmp_path)[-1].facts
    assert others["/c conf"] == "/etc/ceph/ceph.conf"
    assert {name for name in others if name.startswith("/c ")} == {"/c type", "/c conf", "/c flags"}
    assert not own & set(facts.values()), "an address is each node's own"


def test_what_the_client_counted_while_work_was_done(tmp_path: Path) -> None:
    case = next(c for c in PASSIVE if c.name == "the client's own queue")
    metrics = looks(case, tmp_path)[-1].metrics
    assert metrics["/shared WRITE queue share"].value == pytest.approx(93.9, abs=0.1)
    assert metrics["/shared WRITE time"].value == pytest.approx(9.91)
    assert metrics["/shared WRITE rtt"].value == pytest.approx(0.6)
    assert metrics["/shared calls"].value == pytest.approx(1000 / 60)


@pytest.fixture(scope="module", autouse=True)
def doors() -> Iterator[None]:
    with closing(OPEN), closing(SHUT), closing(FULL), closing(WAITING[0]):
        yield
