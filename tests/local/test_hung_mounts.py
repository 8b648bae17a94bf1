"""Mounts that hang, go stale, slow down and recover, under the real runner: FUSE in a namespace.

A process that waits for a FUSE server which has read its request can't be killed, as with a dead
NFS server: what is tested here is what happens on a node whose storage is gone.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount_world import LONG_S, MountWorld, wait_until, world

from healthchecks.frame.check import Status
from healthchecks.frame.report import parse
from healthchecks.many.storage_width import judge

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0
    or not Path("/dev/fuse").exists()
    or importlib.util.find_spec("mfusepy") is None,
    reason="needs root, /dev/fuse and mfusepy",
)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[MountWorld]:
    with world(tmp_path) as made:
        yield made


def alive(there: MountWorld, *, deadline_s: float = LONG_S, **settings: object) -> dict:
    report = there.check("nfs.alive", settings={"nfs.alive": settings}, deadline_s=deadline_s)
    assert len(report["by"]) == 1
    return next(iter(report["by"].values()))


def test_a_healthy_mount_is_listed_read_and_written_and_nothing_stays_in_it(
    there: MountWorld,
) -> None:
    folder = there.folder / "shared"
    folder.mkdir()
    (folder / "canary").write_text("sings\n")
    there.mount("shared")
    found = alive(there, canaries=[f"{folder}/canary"], write=[str(folder)])
    assert (found["status"], found["on"]) == ("OK", str(folder)), found
    assert set(found["metrics"]) == {"statfs", "readdir", "canary", "write"}
    assert [p.name for p in folder.iterdir()] == ["canary"]


def test_a_hung_mount_leaves_one_process_however_often_it_is_looked_at(there: MountWorld) -> None:
    point = there.mount("shared")
    there.order(point, "hung")
    first = alive(there, deadline_s=2.0)
    assert first["status"] == "FAIL" and "no answer within" in first["seen"]
    assert f"at statfs {point}" in first["seen"] and "fuse.lab superv-lab" in first["seen"]
    assert "sleep" in first["seen"]
    assert "umount -l" in first["fix"]
    assert first["shared"] == "fuse.lab superv-lab", "sixty nodes that hang are one finding"
    wait_until(lambda: len(there.sleepers()) == 1)
    stuck = there.sleepers()
    for _ in range(3):
        again = alive(there)
        assert again["status"] == "FAIL" and "stuck since" in again["seen"]
        assert again["shared"] == first["shared"]
        assert there.probes() == stuck
    there.order(point, "ok")
    wait_until(lambda: not there.probes())
    assert alive(there)["status"] == "OK"


def test_when_a_hung_mount_is_aborted_its_process_goes_and_the_mount_can_be_made_afresh(
    there: MountWorld,
) -> None:
    point = there.mount("shared")
    there.order(point, "hung")
    assert alive(there, deadline_s=2.0)["status"] == "FAIL"
    wait_until(there.sleepers)
    there.kill(point)
    wait_until(lambda: not there.probes())
    dead = alive(there)
    assert dead["status"] == "FAIL" and "ENOTCONN 107" in dead["seen"]
    assert dead["fix"] == f"umount -l {point}, then mount {point}"
    there.run("umount", "--lazy", str(point))
    assert alive(there)["status"] == "SKIP"
    gone = alive(there, paths=[str(point)])
    assert gone["status"] == "UNKNOWN" and "no network file system is mounted" in gone["seen"]
    there.mount("shared")
    assert alive(there)["status"] == "OK"


def test_a_stale_mount_is_told_apart_with_its_own_cure(there: MountWorld) -> None:
    point = there.mount("shared")
    there.order(point, "stale")
    found = alive(there)
    assert found["status"] == "FAIL" and "ESTALE 116" in found["seen"]
    assert found["fix"].startswith(f"umount -l {point}, then mount {point}")
    assert found["shared"] == "fuse.lab superv-lab"
    there.order(point, "ok")
    assert alive(there)["status"] == "OK"
    assert not there.probes()


def test_a_slow_mount_is_a_warning_and_a_very_slow_one_a_failure(there: MountWorld) -> None:
    point = there.mount("shared")
    there.order(point, "slow", delay_s=0.1)
    found = alive(there, slow_ms=50)
    assert found["status"] == "WARN" and " took " in found["seen"], found
    assert found["metrics"]["statfs"]["value"] >= 0.1
    assert alive(there, slow_ms=50, fail_ms=90)["status"] == "WARN"
    assert alive(there, slow_ms=50, fail_ms=90, lasts_s=0.0)["status"] == "FAIL"
    there.order(point, "ok")


def test_a_server_that_turned_read_only_is_found_by_writing(there: MountWorld) -> None:
    point = there.mount("shared")
    there.order(point, "readonly")
    assert alive(there)["status"] == "OK"
    found = alive(there, write=[str(point)])
    assert found["status"] == "FAIL" and "EROFS 30" in found["seen"]


def test_a_canary_that_is_gone_or_empty_says_that_this_is_another_export(there: MountWorld) -> None:
    point = there.mount("shared")
    found = alive(there, canaries=[f"{point}/canary"])
    assert found["status"] == "FAIL" and "another export" in found["seen"]
    there.run("touch", f"{point}/canary")
    found = alive(there, canaries=[f"{point}/canary"])
    assert found["status"] == "FAIL" and "canary is empty" in found["seen"]


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (errno.EIO, "EIO 5"),
        (errno.EACCES, "EACCES 13"),
        (errno.ETIMEDOUT, "ETIMEDOUT 110"),
        (errno.ESHUTDOWN, "ESHUTDOWN 108"),
        (errno.EREMOTEIO, "EREMOTEIO 121"),
    ],
)
def test_every_error_has_words_of_its_own(there: MountWorld, error: int, word: str) -> None:
    there.failing("shared", error)
    found = alive(there)
    assert found["status"] == "FAIL" and word in found["seen"] and found["fix"], found


def test_everything_hung_at_once_costs_one_deadline(there: MountWorld) -> None:
    points = [there.mount(f"shared{n}") for n in range(4)]
    for point in points:
        there.order(point, "hung")
    report = there.check("nfs", settings={}, deadline_s=2.0)
    alive = [r for r in report["results"] if r["check"] == "nfs.alive"]
    assert [r["status"] for r in alive] == ["FAIL"] * 4
    assert report["took_s"] < 4 * 2.0, "one after another"
    wait_until(lambda: len(there.sleepers()) == 4)
    again = there.check("nfs", settings={}, deadline_s=2.0)
    assert sum("stuck since" in r["seen"] for r in again["results"]) == 4
    assert len(there.probes()) == 4


def test_a_file_that_a_lost_probe_left_is_removed_by_the_next(there: MountWorld) -> None:
    point = there.mount("shared")
    (point / f".superv-alive-n1-{os.geteuid()}").write_text(
        "left\n"
    )  # below the mount, as the server has it
    assert alive(there, write=[str(point)])["status"] == "OK"
    assert [*point.iterdir()] == []


WIDTH = {"size": 1 << 17, "block": 1 << 15, "writers": 2}


def test_shards_leave_nothing_behind_where_their_process_is_killed(there: MountWorld) -> None:
    point = there.mount("shared")
    settings = {"dir": str(point), "size": 1 << 28, "block": 4096, "writers": 2}
    run = there.checking("storage.width", settings={"storage.width": settings}, deadline_s=5.0)
    # libfuse, as NFS does, keeps a file that is unlinked while it is open under another name.
    wait_until(lambda: len([*point.glob(".fuse_hidden*")]) == 2)
    there.order(point, "hung")
    found = json.loads(run.communicate(timeout=120)[0])["results"][0]
    assert found["status"] == "FAIL" and f"write shards in {point} (fuse.lab" in found["seen"]
    assert len(there.probes()) == 1
    there.order(point, "ok")
    wait_until(lambda: not there.probes())
    wait_until(lambda: not [*point.iterdir()])


def test_the_slow_one_of_four_nodes_is_found_at_full_width(there: MountWorld) -> None:
    points = {f"n{i}": there.mount(f"shared{i}") for i in range(4)}
    for node, point in points.items():
        there.order(point, "slow", delay_s=0.05 if node == "n2" else 0.002)
    start = time.time() + 2.0
    runs = {
        node: there.checking(
            "storage.width",
            settings={
                "storage.width": {**WIDTH, "dir": str(at), "start_at": start, "limit_s": 0.8}
            },
            node=node,
        )
        for node, at in points.items()
    }
    reports = {node: parse(run.communicate(timeout=120)[0]) for node, run in runs.items()}
    everybody, *odd = judge(reports)
    slow = {judged.node: judged.result for judged in odd}
    assert everybody.result.metrics["nodes"].value == 4
    assert everybody.result.metrics["write_total"].value > 0
    assert slow["n2"].status is Status.FAIL, slow
    assert "% of the median node's" in slow["n2"].seen
