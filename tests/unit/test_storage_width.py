"""Shards, and the comparison of what the nodes got when all wrote at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from healthchecks.frame.check import Metric, Result, Status
from healthchecks.frame.report import Finding, Report
from healthchecks.many.storage_width import judge
from healthchecks.probes.shards import Shards, Side

GB = 1e9


def node(
    name: str,
    *,
    write: float = 4.0,
    read: float = 9.0,
    began: float = 100.0,
    queue: float | None = None,
    status: Status = Status.OK,
    check: str = "storage.width",
) -> Report:
    """One node's report; rates in GB/s, 40 GB moved each way."""
    metrics = {}
    for way, rate, at in (("write", write, began), ("read", read, began + 30)):
        metrics |= {
            f"{way}_throughput": Metric(value=rate * GB, unit="B/s"),
            f"{way}_bytes": Metric(value=40 * GB, unit="B"),
            f"{way}_began": Metric(value=at, unit="s"),
            f"{way}_took": Metric(value=40 / rate, unit="s"),
        }
        if queue is not None:
            metrics[f"{way}_queue_share"] = Metric(value=queue, unit="%")
    result = Result(status=status, seen="told by the node", metrics=metrics)
    return Report(node=name, at=began, findings=[Finding(check=check, result=result)])


def cluster(count: int = 60, **odd: Report) -> dict[str, Report]:
    names = [f"n{i:02}" for i in range(count)]
    return {name: odd.get(name) or node(name) for name in names}


def test_sixty_alike() -> None:
    (everybody,) = judge(cluster())
    assert everybody.node == "" and everybody.result.status is Status.OK
    assert everybody.result.metrics["nodes"].value == 60
    assert everybody.result.metrics["write_total"].value == pytest.approx(60 * 4 * GB)
    assert everybody.result.metrics["read_median"].value == 9 * GB
    assert "write 240.00 GB/s in all, 4.00 the median node" in everybody.result.seen


def test_the_slow_node_is_named() -> None:
    reports = cluster(n07=node("n07", write=1.0), n09=node("n09", read=6.0))
    _, worst, slow = judge(reports)
    assert (worst.node, worst.result.status) == ("n07", Status.FAIL)
    assert "writes 1.00 GB/s, 25 % of the median node's 4.00" in worst.result.seen
    assert (slow.node, slow.result.status) == ("n09", Status.WARN)
    assert worst.result.fix and worst.result.expected


def test_all_as_slow_as_each_other_is_no_node_s_fault() -> None:
    reports = {f"n{i}": node(f"n{i}", write=0.1, queue=93.1) for i in range(4)}
    (everybody,) = judge(reports)
    assert everybody.result.status is Status.WARN
    assert "93.1 % of a write's time is spent in the clients' own queues" in everybody.result.seen
    assert "nconnect" in everybody.result.fix


def test_what_was_not_at_once_says_nothing() -> None:
    everybody, *_ = judge(cluster(n03=node("n03", began=200.0)))
    assert everybody.result.status is Status.UNKNOWN
    assert "writes were not at once: n03 began +100.0 s" in everybody.result.seen
    assert "start_at" in everybody.result.fix


def test_nodes_without_figures_are_named_and_leave_the_whole_unknown() -> None:
    failed = Report(
        node="n01",
        at=0,
        findings=[
            Finding(check="storage.width", result=Result(status=Status.FAIL, seen="hung: statfs"))
        ],
    )
    everybody, odd = judge(cluster(n01=failed))
    assert everybody.result.status is Status.UNKNOWN
    assert "59 of 60 nodes measured" in everybody.result.seen
    assert (odd.node, odd.result.seen) == ("n01", "hung: statfs")


def test_a_node_that_failed_by_its_own_measure_is_told_too() -> None:
    _, odd = judge(cluster(n01=node("n01", status=Status.FAIL)))
    assert (odd.node, odd.result.seen) == ("n01", "told by the node")


def test_two_nodes_are_too_few_to_say_who_is_slow() -> None:
    (everybody,) = judge({"a": node("a", write=1.0), "b": node("b", write=1.4)})
    assert "too few to say" in everybody.result.seen


def test_nobody_was_asked() -> None:
    (nothing,) = judge({})
    assert nothing.result.status is Status.SKIP
    (nothing,) = judge({"a": node("a", check="nfs.alive")})
    assert nothing.result.status is Status.SKIP


def test_shards_are_written_read_and_gone(tmp_path: Path) -> None:
    shards = Shards(tmp_path, tmp_path, "n1", 3)
    try:
        assert [*tmp_path.iterdir()] == [], "no shard has a name that could be left behind"
        wrote = shards.write(20_000, 8192, time.monotonic() + 60)
        read = shards.read(8192, time.monotonic() + 60)
    finally:
        shards.close()
    assert wrote.moved == read.moved == 3 * 24_576
    assert len(wrote.blocks) == 9 and wrote.rate > 0


def test_shards_end_when_their_time_is_up(tmp_path: Path) -> None:
    shards = Shards(tmp_path, tmp_path, "n1", 1)
    try:
        wrote = shards.write(1 << 40, 4096, time.monotonic())
    finally:
        shards.close()
    assert wrote.moved == 0 and wrote.percentile(0.5) == 0.0


def test_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Shards(tmp_path / "nowhere", tmp_path, "n1", 2)


def test_percentiles_are_by_nearest_rank() -> None:
    side = Side(blocks=[3.0, 1.0, 2.0, 4.0])
    assert [side.percentile(p) for p in (0.0, 0.5, 0.99)] == [1.0, 3.0, 4.0]
