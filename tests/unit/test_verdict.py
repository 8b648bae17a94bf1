"""What sightings add up to: whom a diagnosis names, and whom it must not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor import signatures
from supervisor.core.sighting import JobShape, Sighting
from supervisor.core.verdict import Diagnosis, diagnosed
from supervisor.signatures import CauseClass, Role

KNOWN = signatures.load()
BY_ID = {one.id: one for one in KNOWN.all}
NODES = tuple(f"n{n}" for n in range(8))
SHAPE = JobShape(
    nodes=NODES,
    ranks=frozenset(range(32)),
    node_of={rank: NODES[rank // 4] for rank in range(32)},
    kernel_nodes=frozenset(NODES),
)
order = iter(range(10**9))


def saw(signature: str, at: float | None = 100.0, **more: Any) -> Sighting:
    one = BY_ID[signature]
    where: Mapping[str, Any] = {"source": "log", "line": 1, "text": one.match[0], **more}
    return Sighting(signature=one, at=at, order=next(order), **where)


def judge(*seen: Sighting, shape: JobShape = SHAPE) -> Diagnosis:
    return diagnosed(seen, shape, KNOWN)


def named(found: Diagnosis) -> list[str]:
    return [one.node for one in found.culprits]


def test_the_kernel_s_word_on_one_node_names_it() -> None:
    found = judge(
        saw("nccl-remote-closed", 90.0, node="n5", rank=20),
        saw("xid-bus", 95.0, node="n2", gpu="0000:3b:00"),
        saw("launch-failure", 96.0, node="n2", rank=9),
    )
    assert (found.cause.name, named(found), found.confidence) == ("gpu-lost", ["n2"], "witnessed")


@pytest.mark.parametrize("nodes", [3, 8])
def test_three_nodes_at_once_share_a_cause(nodes: int) -> None:
    found = judge(*(saw("xid-bus", 95.0 + n, node=NODES[n]) for n in range(nodes)))
    assert (found.cause.name, named(found)) == ("gpu-lost", [])


def test_a_tie_names_nobody_and_the_earlier_is_named() -> None:
    tie = judge(saw("cuda-ecc", 95.0, rank=4), saw("cuda-ecc", 95.5, rank=9))
    assert named(tie) == [] and "tie" in tie.why
    first = judge(saw("cuda-ecc", 95.0, rank=4), saw("cuda-ecc", 99.0, rank=9))
    assert named(first) == ["n1"]


def test_what_training_survived_is_no_cause() -> None:
    shape = JobShape(nodes=NODES, node_of=SHAPE.node_of, last_step_at=5000.0)
    found = judge(
        saw("xid-memory", 95.0, node="n2"),
        saw("cuda-out-of-memory", 5010.0, rank=1),
        shape=shape,
    )
    assert found.cause.name == "cuda-out-of-memory"


def test_an_earlier_death_explains_a_link_whose_peer_is_silent() -> None:
    links = [saw("nccl-ib-retry-exceeded", 130.0 + n, node=f"n{n}", peer="n6") for n in range(3)]
    assert named(judge(*links)) == ["n6"]
    assert named(judge(saw("elastic-killed", 100.0, rank=24), *links)) == []


def test_one_link_has_two_ends() -> None:
    found = judge(saw("nccl-ib-retry-exceeded", node="n1", peer="n6"))
    assert named(found) == [] and {one.node for one in found.suspects} == {"n1", "n6"}


def test_a_missing_file_is_a_mount_s_fault_only_where_all_ranks_of_one_node_miss_it() -> None:
    whole = [saw("missing-file", rank=rank) for rank in range(12, 16)]
    assert named(judge(*whole)) == ["n3"]
    assert named(judge(*whole[:2])) == []  # some of its ranks
    assert named(judge(*whole, saw("missing-file", rank=16))) == []  # another node's too
    assert named(judge(*(saw("missing-file", rank=rank) for rank in range(4)))) == []  # rank 0's


def test_a_mount_that_hangs_on_one_node_is_that_node_s_client() -> None:
    assert named(judge(saw("kernel-nfs", node="n4", peer="10.0.0.9"))) == ["n4"]
    alone = JobShape(nodes=NODES, kernel_nodes=frozenset({"n4"}))
    assert named(judge(saw("kernel-nfs", node="n4", peer="10.0.0.9"), shape=alone)) == []
    gone = judge(saw("kernel-nfs", node="n4", cleared=True), saw("cuda-out-of-memory", rank=1))
    assert gone.cause.name == "cuda-out-of-memory"


def test_a_time_limit_does_not_hide_what_came_before() -> None:
    assert judge(saw("slurm-time-limit")).cause.name == "time-limit"
    found = judge(saw("watchdog-timeout", 50.0, rank=3), saw("slurm-time-limit", 100.0))
    assert found.cause.name == "collective-timeout"


@pytest.mark.parametrize(
    ("version", "cause"), [("2.28.3", "nccl-hang"), ("2.28.9", "collective-timeout"), ("", None)]
)
def test_a_version_of_nccl_that_hangs_is_software(version: str, cause: str | None) -> None:
    facts = {"pg": "0", "seq": "7", "op": "ALLREDUCE", "last": "9"}
    waits = [saw("watchdog-work", rank=rank, facts=facts) for rank in range(32)]
    shape = JobShape(nodes=NODES, ranks=SHAPE.ranks, node_of=SHAPE.node_of, nccl=version)
    found = judge(*waits, shape=shape)
    assert (found.cause.name, named(found)) == (cause or "collective-timeout", [])


def test_the_rank_that_is_behind_is_where_to_look() -> None:
    waits = [
        saw("watchdog-work", rank=n, facts={"pg": "0", "seq": "7", "last": "6" if n == 9 else "9"})
        for n in range(32)
    ]
    found = judge(*waits)
    assert named(found) == [] and [str(one) for one in found.suspects] == ["n2, rank 9"]


@pytest.mark.parametrize(
    ("op", "sizes", "cause"),
    [
        ("ALLREDUCE", ("200", "100"), "collective-mismatch"),
        ("ALLREDUCE", ("100", "100"), "collective-timeout"),
        ("ALLREDUCE", ("100", None), "collective-timeout"),
        ("SEND", ("200", "100"), "collective-timeout"),  # to different peers
    ],
)
def test_sizes_that_differ_in_one_collective_are_the_program_s(
    op: str, sizes: tuple[str | None, ...], cause: str
) -> None:
    waits = []
    for rank, size in enumerate(sizes):
        work = {"seq": "7", "op": op} | ({"numel": size} if size else {})
        waits.append(saw("watchdog-timeout", rank=rank, facts=work))
        group = {"pg": "0(default_pg)", "seq": "7", "last": "7"}
        waits.append(saw("watchdog-work", rank=rank, facts=group))
    found = judge(*waits)
    assert (found.cause.name, named(found)) == (cause, []), found.why


SIGHTINGS = st.builds(
    saw,
    st.sampled_from(sorted(BY_ID)),
    st.one_of(st.none(), st.floats(0, 20_000)),
    rank=st.one_of(st.none(), st.integers(0, 31)),
    node=st.sampled_from(("", *NODES)),
    peer=st.sampled_from(("", *NODES)),
)


@given(st.lists(SIGHTINGS, max_size=12))
def test_whatever_is_seen_a_diagnosis_keeps_to_its_rules(seen: list[Sighting]) -> None:
    found = judge(*seen)
    assert found.cause.name in KNOWN.causes
    assert (not found.culprits) == (found.confidence == "unnamed")
    if found.culprits:
        assert len(found.culprits) < 3
        assert found.evidence[0].signature.role is not Role.CASCADE
        one_node = found.cause.name in ("import-error", "missing-file")
        assert found.cause.kind is CauseClass.INFRASTRUCTURE or one_node
    if not [one for one in seen if one.signature.role is not Role.CASCADE]:
        assert not found.culprits and found.cause.name in ("unknown", "consequence")


@given(st.lists(SIGHTINGS, max_size=8), st.randoms())
def test_the_order_of_reading_does_not_matter_where_times_tell(
    seen: list[Sighting], random: Any
) -> None:
    timed = [one for one in seen if one.at is not None]
    mixed = list(timed)
    random.shuffle(mixed)
    first, second = judge(*timed), judge(*mixed)
    assert (first.cause, named(first)) == (second.cause, named(second))
