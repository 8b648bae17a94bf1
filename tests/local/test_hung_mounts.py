"""Mounts that hang, go stale, slow down and recover, under the real runner: FUSE in a namespace.

A process that waits for a FUSE server which has read its request can't be killed, as with a dead
NFS server: what is tested here is what happens on a node whose storage is gone.
"""

from __future__ import annotations

import errno
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount_world import World, wait_until, world

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0
    or not Path("/dev/fuse").exists()
    or importlib.util.find_spec("mfusepy") is None,
    reason="needs root, /dev/fuse and mfusepy",
)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path) as made:
        yield made


def alive(there: World, **settings: object) -> dict:
    report = there.check("nfs.alive", settings={"nfs.alive": settings})
    assert len(report["by"]) == 1
    return next(iter(report["by"].values()))


def test_a_healthy_mount_is_listed_read_and_written_and_nothing_stays_in_it(there: World) -> None:
    folder = there.folder / "shared"
    folder.mkdir()
    (folder / "canary").write_text("sings\n")
    there.mount("shared")
    found = alive(there, canaries=[f"{folder}/canary"], write=[str(folder)])
    assert (found["status"], found["on"]) == ("OK", str(folder)), found
    assert set(found["metrics"]) == {"statfs", "readdir", "canary", "write"}
    assert [p.name for p in folder.iterdir()] == ["canary"]


def test_a_hung_mount_leaves_one_process_however_often_it_is_looked_at(there: World) -> None:
    point = there.mount("shared")
    there.order(point, "hung")
    first = alive(there)
    assert first["status"] == "FAIL" and "no answer within" in first["seen"]
    assert f"at statfs {point}" in first["seen"] and "fuse.lab superv-lab" in first["seen"]
    assert "sleep" in first["seen"]
    assert "umount -l" in first["fix"]
    wait_until(lambda: len(there.sleepers()) == 1)
    stuck = there.sleepers()
    for _ in range(3):
        again = alive(there)
        assert again["status"] == "FAIL" and "stuck since" in again["seen"]
        assert there.probes() == stuck
    there.order(point, "ok")
    wait_until(lambda: not there.probes())
    assert alive(there)["status"] == "OK"


def test_when_a_hung_mount_is_aborted_its_process_goes_and_the_mount_can_be_made_afresh(
    there: World,
) -> None:
    point = there.mount("shared")
    there.order(point, "hung")
    assert alive(there)["status"] == "FAIL"
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


def test_a_stale_mount_is_told_apart_with_its_own_cure(there: World) -> None:
    point = there.mount("shared")
    there.order(point, "stale")
    found = alive(there)
    assert found["status"] == "FAIL" and "ESTALE 116" in found["seen"]
    assert found["fix"].startswith(f"umount -l {point}, then mount {point}")
    assert found["shared"] == "fuse.lab superv-lab"
    there.order(point, "ok")
    assert alive(there)["status"] == "OK"
    assert not there.probes()


def test_a_slow_mount_is_a_warning_and_a_very_slow_one_a_failure(there: World) -> None:
    point = there.mount("shared")
    there.order(point, "slow", delay_s=0.1)
    found = alive(there, slow_ms=50)
    assert found["status"] == "WARN" and " took " in found["seen"], found
    assert found["metrics"]["statfs"]["value"] >= 0.1
    assert alive(there, slow_ms=50, fail_ms=90)["status"] == "FAIL"
    there.order(point, "ok")


def test_a_server_that_turned_read_only_is_found_by_writing(there: World) -> None:
    point = there.mount("shared")
    there.order(point, "readonly")
    assert alive(there)["status"] == "OK"
    found = alive(there, write=[str(point)])
    assert found["status"] == "FAIL" and "EROFS 30" in found["seen"]


def test_a_canary_that_is_gone_or_empty_says_that_this_is_another_export(there: World) -> None:
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
def test_every_error_has_words_of_its_own(there: World, error: int, word: str) -> None:
    there.failing("shared", error)
    found = alive(there)
    assert found["status"] == "FAIL" and word in found["seen"] and found["fix"], found


def test_everything_hung_at_once_costs_one_deadline(there: World) -> None:
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
