"""Mounts as the kernel tells them: mountinfo, fstab, mountstats."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from healthchecks.frame.check import Unknown
from healthchecks.frame.context import Ctx, Memory
from healthchecks.sources.mounts import (
    NfsServer,
    Table,
    host_of,
    nfs_servers,
    parse_fstab,
    parse_mountinfo,
    plain,
    table,
    tidy,
)
from healthchecks.sources.mountstats import Op, parse

INFO = r"""
1 1 0:2 / / rw - rootfs rootfs rw
29 1 252:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
30 29 0:26 / /dev/shm rw,nosuid,nodev shared:2 - tmpfs tmpfs rw
31 29 0:40 / /shared rw,relatime - nfs4 nas:/a\040b rw,hard,nconnect=4,proto=tcp,addr=10.0.0.5
32 29 0:41 / /old rw - nfs [fd00::5]:/v ro,vers=3,soft,proto=tcp6,port=20490,addr=fd00::5
33 29 0:42 / /fast rw shared:4 master:1 - nfs 10.0.0.7:/f rw,proto=rdma,port=20049,addr=10.0.0.7
34 29 0:43 / /scratch rw - lustre 10.0.0.9@o2ib:/fs rw,flock
35 29 0:44 / /weights rw - fuse.mount-s3 mountpoint-s3 rw,user_id=0,group_id=0,allow_other
36 29 0:45 / /home/u/mine rw - fuse.sshfs u@h: rw,user_id=1000,group_id=1000,allow_other
37 29 0:46 / /var/lib/lxcfs rw - fuse.lxcfs lxcfs rw,user_id=0,group_id=0,allow_other
38 31 0:47 / /shared/inner rw - tmpfs tmpfs rw
39 29 0:48 / /over rw - nfs4 nas:/hidden rw,proto=tcp,addr=10.0.0.5
40 39 0:49 / /over rw - tmpfs tmpfs rw
41 29 0:50 / /cloth/hidden rw - nfs4 nas:/cloth rw
42 29 0:51 / /cloth rw - tmpfs tmpfs rw
43 29 0:40 /home /home rw - nfs4 nas:/a\040b rw,addr=10.0.0.5
""".strip()


@pytest.fixture
def seen() -> Table:
    return Table(parse_mountinfo(INFO))


def test_a_line_of_mountinfo(seen: Table) -> None:
    shared = seen.at("/shared")
    assert shared is not None
    assert (shared.id, shared.parent, shared.device) == (31, 29, "0:40")
    assert shared.source == "nas:/a b", "blanks are octal"
    assert shared.value("nconnect") == "4" and shared.value("connect") == ""
    assert shared.in_force >= {"rw", "hard", "relatime"}
    old = seen.at("/old")
    assert old is not None and "ro" in old.in_force and "rw" not in old.in_force


def test_servers(seen: Table) -> None:
    servers = {m.point: m.server for m in seen.network()}
    assert servers["/shared"] == NfsServer(host="nas", addr="10.0.0.5", port=2049, proto="tcp")
    assert servers["/old"] == NfsServer(host="fd00::5", addr="fd00::5", port=20490, proto="tcp6")
    assert servers["/scratch"] is None
    names = {s.name: (s.endpoint, s.tcp) for s in servers.values() if s}
    assert names == {
        "nfs server nas (10.0.0.5)": ("10.0.0.5:2049", True),
        "nfs server fd00::5": ("[fd00::5]:20490", True),
        "nfs server 10.0.0.7": ("10.0.0.7:20049", False),
    }
    assert list(nfs_servers(seen.network())) == list(names)
    scratch = seen.at("/scratch")
    assert scratch is not None and scratch.shared == "lustre 10.0.0.9@o2ib:/fs"


def test_network_mounts_are_those_that_wait_for_a_server_for_everybody(seen: Table) -> None:
    """And a bind mount is no other file system."""
    assert [m.point for m in seen.network()] == ["/shared", "/old", "/fast", "/scratch", "/weights"]


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/", 29),
        ("/home/x", 43),
        ("/shared", 31),
        ("/shared/run/x", 31),
        ("/sharedx", 29),
        ("/shared/inner/x", 38),
        ("/over/x", 40),
        ("/cloth/hidden", 42),
        ("/dev/shm", 30),
    ],
)
def test_the_mount_that_a_path_leads_to(seen: Table, path: str, number: int) -> None:
    under = seen.under(path)
    assert under is not None and under.id == number


def test_what_is_hidden_is_not_there(seen: Table) -> None:
    assert seen.at("/cloth/hidden") is None
    assert [m.id for m in seen.stacked("/cloth/hidden")] == [41]
    assert [m.id for m in seen.stacked("/over")] == [39, 40]


def test_a_namespace_that_does_not_see_its_root() -> None:
    seen = Table(parse_mountinfo("50 7 0:40 / /shared rw - nfs4 nas:/x rw"))
    assert seen.at("/shared") is not None
    assert seen.under("/") is None


@pytest.mark.parametrize("line", ["", "29 1 252:1 / /", "a b 0:1 / / rw - ext4 x rw", "1 2 - x"])
def test_a_line_that_is_none_of_mountinfos_is_unknown(line: str) -> None:
    with pytest.raises(Unknown, match="a line that is none"):
        parse_mountinfo(f"{INFO}\n{line}\n{INFO}")


ENDS = [c for c in map(chr, range(sys.maxunicode)) if len(f"a{c}b".splitlines()) > 1]


@pytest.mark.parametrize("end", ENDS)
def test_a_users_mount_point_ends_no_line(tmp_path: Path, end: str) -> None:
    """With FUSE any user names one; the kernel escapes blank, tab, LF, backslash and no other."""
    if end == "\n":
        end = "\\012"
    (tmp_path / "proc/self").mkdir(parents=True)
    line = f"60 1 0:50 / /home/u/a{end}b rw - fuse.x x rw,user_id=1000"
    (tmp_path / "proc/self/mountinfo").write_bytes(f"{INFO}\n{line}\n".encode())
    found = table(
        Ctx(root=tmp_path, node="n1", now=1.0, boot_id="b", memory=Memory({}, 1.0))
    ).mounts
    assert [m.point for m in found[-1:]] == [plain(f"/home/u/a{end}b")]
    assert len(found) == len(parse_mountinfo(INFO)) + 1


def test_paths_as_people_write_them() -> None:
    assert tidy("/shared//run/") == "/shared/run"
    with pytest.raises(Unknown, match="'shared' is configured; a mount is named by its full path"):
        tidy("shared")


@pytest.mark.parametrize(
    ("source", "host"),
    [
        ("nas:/x", "nas"),
        ("10.0.0.5:/", "10.0.0.5"),
        ("[fd00::1]:/x", "fd00::1"),
        ("/dev/vda1", ""),
        ("10.0.0.9@o2ib:/fs", "10.0.0.9@o2ib"),
        ("tmpfs", ""),
    ],
)
def test_the_host_of_a_source(source: str, host: str) -> None:
    assert host_of(source) == host


def test_fstab() -> None:
    text = """
    # comment
    UUID=1-2 / ext4 defaults 0 1
    nas:/a\\040b /with\\040blank nfs4 hard,_netdev 0 0
    nas:/ro /ro/ nfs ro,soft  # last
    nas:/later /later nfs noauto,user 0 0
    fs@o2ib:/fs /scratch lustre
    mount-s3 /weights fuse.mount-s3 allow_other 0 0
    lxcfs /x fuse.lxcfs defaults 0 0
    nas:/none none nfs defaults 0 0
    short
    """
    found = [(m.path, m.source, m.fstype, m.options) for m in parse_fstab(text)]
    assert found == [
        ("/with blank", "nas:/a b", "nfs4", ("rw",)),
        ("/ro", "nas:/ro", "nfs", ("ro",)),
        ("/scratch", "fs@o2ib:/fs", "lustre", ("rw",)),
        ("/weights", "mount-s3", "fuse.mount-s3", ("rw",)),
    ]


STATS = """\
device /dev/vda1 mounted on / with fstype ext4
device nas:/a mounted on /shared with fstype nfs4 statvers=1.1
\topts:\trw,vers=4.1,rsize=1048576,wsize=1048576,hard,proto=tcp,nconnect=2,addr=10.0.0.5
\tage:\t5000
\timpl_id:\tname='Some Filer 9.1: built Mon 1 Jan
on: a build host',domain='example.com',date='1293840000,0'
\tcaps:\tcaps=0xfffbffff,wtmult=512,dtsize=1048576,bsize=0,namlen=255
\tnfsv4:\tbm0=0xfdffbfff,bm1=0xf9be3e,bm2=0x68800,acl=0x3,sessions,pnfs=not configured
\tsec:\tflavor=1,pseudoflavor=1
\tevents:\t52 226 0 0 1 13 398 0 0 331 0 47 0 0 77 0 0 77 0 0 0 0 0 0 0 0 0
\tbytes:\t1207640230 0 0 0 1210214218 0 295483 0
\tRPC iostats version: 1.1  p/v: 100003/4 (nfs)
\txprt:\ttcp 832 0 1 0 11 6428 6428 0 12154 40 24 26 5726
\txprt:\ttcp 833 0 2 0 11 3000 2999 1 12154 2 31 26 5726
\tper-op statistics
\t        NULL: 0 0 0 0 0 0 0 0 0
\t        READ: 1298 1300 1 207680 1210292152 6 79386 79407 2
\t       WRITE: 100 100 0 104857600 13600 9310 600 10000 0
device nas:/b mounted on /o\\040ld with fstype nfs statvers=1.1
\tage:\t77
\tRPC iostats version: 1.0  p/v: 100003/3 (nfs)
\txprt:\tudp 700 1 50 49 0 60 7
\tper-op statistics
\t     GETATTR: 40 41 0 400 500 1 2 3
\t        BAD: what
device nas:/c mounted on /fast with fstype nfs statvers=1.1
\tage:\t1270876
\txprt:\trdma 0 0 5808 62 0 494490723 494490687 36 10032963746 1282789 107150285 1226637531 2673889
\tper-op statistics
\t        NULL: 16 16 0 640 384 320 11 331 0
device nas:/d mounted on /none with fstype nfs4
device tmpfs mounted on /tmp with fstype tmpfs
"""


def test_mountstats_of_a_mount_with_two_connections() -> None:
    found = parse(STATS)
    assert list(found) == ["/shared", "/o ld", "/fast"]
    shared = found["/shared"]
    assert (shared.device, shared.age_s, shared.transports) == ("nas:/a", 5000, 2)
    assert (shared.connects, shared.sends, shared.receives) == (3, 9428, 9427)
    assert (shared.backlog, shared.slots) == (42, 31)
    assert list(shared.ops) == ["READ", "WRITE"], "what was never called is left out"
    assert shared.ops["READ"] == Op(1298, 1300, 1, 207680, 1210292152, 6, 79386, 79407, 2)
    assert shared.ops["READ"].again == 2
    assert shared.ops["WRITE"].queue_share == pytest.approx(93.1)
    assert shared.ops["WRITE"].mean_s(shared.ops["WRITE"].execute_ms) == pytest.approx(0.1)
    assert shared.total().calls == 1398 and shared.total().timeouts == 1


def test_mountstats_of_older_and_other_transports() -> None:
    found = parse(STATS)
    old, fast = found["/o ld"], found["/fast"]
    assert (old.sends, old.receives, old.backlog, old.slots) == (50, 49, 7, 0)
    assert old.ops == {"GETATTR": Op(40, 41, 0, 400, 500, 1, 2, 3)}
    assert (fast.connects, fast.sends, fast.backlog) == (5808, 494490723, 1282789)


def test_a_clock_that_stepped_gives_no_share() -> None:
    assert Op(calls=2, queue_ms=2**64 - 5, execute_ms=10).queue_share is None
    assert Op(calls=2, execute_ms=0).queue_share is None
    assert Op(calls=0, execute_ms=5).mean_s(5) is None
    assert Op(calls=2, queue_ms=-5, execute_ms=10).queue_share is None


def test_growth_since_an_earlier_look() -> None:
    then = json.loads(json.dumps(parse(STATS)["/shared"].document()))
    later = STATS.replace("age:\t5000", "age:\t5060").replace("1298 1300 1", "1398 1410 4")
    later = later.replace("WRITE: 100 100", "WRITE: 100 100").replace("6428 6428", "6528 6528")
    now = parse(later)["/shared"]
    grown = now.since(then)
    assert grown is not None
    assert grown.age_s == 60 and grown.sends == 100
    assert grown.ops == {"READ": Op(calls=100, sent=110, timeouts=3)}


def test_a_mount_made_afresh_has_not_grown() -> None:
    shared = parse(STATS)["/shared"]
    assert shared.since(None) is None
    assert shared.since(shared.document()) is None, "no time went by"
    younger = parse(STATS.replace("age:\t5000", "age:\t4000"))["/shared"]
    assert younger.since(shared.document()) is None
    counted_anew = parse(STATS.replace("age:\t5000", "age:\t6000").replace("1298", "3"))["/shared"]
    assert counted_anew.since(shared.document()) is None


def test_text_that_is_no_mountstats_holds_no_mount() -> None:
    assert parse("") == {}
    assert parse("hello\n\tage:\t5\n") == {}
    assert parse("device\ndevice x mounted on\n") == {}


def test_a_misspelt_key_of_a_mount_is_a_mistake() -> None:
    import pytest

    from healthchecks.frame.registry import registered, settings_for
    from supervisor.core.errors import UserError

    mounts = [{"path": "/shared"}, {"path": "/x", "fs_type": "nfs4"}]
    with pytest.raises(UserError, match=r"nfs.mounted: mounts\[1\]: no key 'fs_type'"):
        settings_for(registered()["nfs.mounted"], {"mounts": mounts})
