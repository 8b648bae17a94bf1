"""Who is taken for whom: the cases that need another engine, or other addresses."""

from __future__ import annotations

import os
import stat
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenario import spec

from supervisor.channel import identity, wire
from supervisor.channel.link import Frames
from supervisor.channel.router import Channel, Received
from supervisor.core.types import Allocation, AllocationState, Node, NodeState, Phase, Run
from supervisor.engine.node_addresses import NodeAddresses
from supervisor.engine.registration import Admitted, Registration, Wait

SPEC = spec()
JOB, NODES = "7", ("n1", "n2", "n3")
KEYS = {node: identity.new_key() for node in NODES}
ADDRESSES = {
    "n1": {"10.0.0.1", "10.1.0.1"},
    "n2": {"10.0.0.2"},
    "n3": {"10.0.0.3"},
}


class NoLink:
    async def receive(self) -> Frames:
        raise NotImplementedError

    async def send(self, identity: bytes, data: bytes) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class NewEngine:
    """An engine that has just begun, over a run whose journal knows the nodes."""

    def __init__(self, addresses: dict[str, set[str]] = ADDRESSES, **known: str) -> None:
        self.channel = Channel(NoLink(), time.monotonic)  # its book of peers
        pool = {
            name: Node(name=name, job_id=JOB, address="10.0.0.1", port=1, agent="a", key=key)
            for name, key in known.items()
        }
        self.run = Run(
            spec=SPEC,
            phase=Phase.RUNNING,
            pool=pool,
            allocations={
                JOB: Allocation(
                    job_id=JOB,
                    job_name="j",
                    state=AllocationState.GRANTED,
                    nodes=NODES,
                    folder="/tmp/f",
                )
            },
        )
        self.asked = threading.Event()
        self.addresses = NodeAddresses(lambda node: frozenset(addresses.get(node, ())))
        self.addresses._ask(NODES)
        self.registration = Registration(
            self.channel, self.addresses, epoch=2, run=lambda: self.run, clock=time.monotonic
        )

    def hello(self, node: str, key: str = "", address: str = "", **changes: Any) -> Any:
        values: dict[str, Any] = {
            "run_id": SPEC.run_id,
            "node": node,
            "job_id": JOB,
            "address": "10.0.0.9",
            "port": 5,
            "agent": "b",
            "version": "0",
            "epoch": 1,
        }
        hello = wire.Hello(**(values | changes))
        own = identity.routing_id("b", key or KEYS[node])
        received = Received(own, hello, address)
        answer = self.registration.judge(received, hello)
        if isinstance(answer, Admitted):
            self.channel.admit(own, hello)
        return answer


def hashed(node: str) -> str:
    return identity.speaker(identity.routing_id("b", KEYS[node])).key


def test_a_new_engine_waits_for_the_agents_that_its_journal_knows() -> None:
    world = NewEngine(n1=hashed("n1"))
    assert world.hello("n1", key=identity.new_key()) == Wait()  # the first to come is another
    assert world.hello("n1") == Admitted()
    assert isinstance(world.hello("n1", key=identity.new_key()), Wait)


def test_and_not_for_ever() -> None:
    world = NewEngine(n1=hashed("n1"))
    world.registration._began -= 60
    assert world.hello("n1", key=identity.new_key()) == Admitted()


@pytest.mark.parametrize("state", [NodeState.LEFT, NodeState.LOST])
def test_nor_for_those_that_are_gone(state: NodeState) -> None:
    world = NewEngine(n1=hashed("n1"))
    world.run = replace(world.run, pool={"n1": replace(world.run.pool["n1"], state=state)})
    assert world.hello("n1", key=identity.new_key()) == Admitted()


def test_an_agent_that_an_older_engine_took_has_no_key_in_the_journal() -> None:
    assert NewEngine(n1="").hello("n1") == Admitted()


def test_a_job_that_slurm_did_not_tell_of_yet_is_asked_for() -> None:
    world = NewEngine()
    for changed in ({"state": AllocationState.REQUESTED}, {"nodes": ()}):
        before = world.run
        allocation = replace(world.run.allocations[JOB], **changed)
        world.run = replace(world.run, allocations={JOB: allocation})
        assert world.hello("n1") == Wait(poll=True)
        world.run = before


@pytest.mark.parametrize(
    ("node", "address", "taken"),
    [
        ("n1", "10.0.0.1", True),
        ("n1", "10.1.0.1", True),  # nodes have several
        ("n1", "10.0.0.2", False),  # that is n2
        ("n2", "10.0.0.1", False),
        ("n1", "192.168.0.77", True),  # nobody's: noted, for names may know one network only
        ("n1", "", True),
        ("n1", "127.0.0.1", True),
    ],
)
def test_the_address_that_an_agent_speaks_from(node: str, address: str, taken: bool) -> None:
    answer = NewEngine().hello(node, address=address)
    assert isinstance(answer, Admitted) is taken, answer
    if not taken:
        assert "speaks from" in answer.why and f"not {node}" in answer.why
    elif address == "192.168.0.77":
        assert "nothing confirms it" in answer.note


def test_nodes_behind_one_address_and_names_that_mean_nothing_are_taken() -> None:
    shared = NewEngine(addresses={node: {"10.0.0.1"} for node in NODES})
    unknown = NewEngine(addresses={"n2": {"10.0.0.2"}})  # n1's name means nothing here
    for world in (shared, unknown, NewEngine(addresses={})):
        for node in NODES[:1]:
            assert world.hello(node, address="10.0.0.1" if world is shared else "10.0.0.2") == (
                Admitted()
            )


def test_a_name_server_that_is_away_keeps_nobody_waiting() -> None:
    gate = threading.Event()

    def hangs(node: str) -> frozenset[str]:
        gate.wait()
        return frozenset()

    addresses = NodeAddresses(hangs)
    addresses.learn(NODES)
    addresses.learn(NODES)  # no second thread for the same question
    assert addresses.of("n1") == frozenset() and threading.active_count() < 50
    gate.set()


def test_what_stands_in_the_way_of_a_newcomer_is_gone_when_the_run_says_so() -> None:
    world = NewEngine()
    assert world.hello("n1") == Admitted()
    left = Node(name="n1", job_id=JOB, address="", port=1, agent="b", state=NodeState.LEFT)
    world.run = replace(world.run, pool={"n1": left})
    assert world.hello("n1", key=identity.new_key()) == Admitted()


# --- an agent's own key ---------------------------------------------------------------------------


def test_the_key_of_a_node_stays(tmp_path: Path) -> None:
    key = identity.own_key(tmp_path)
    assert identity.own_key(tmp_path) == key and len(key) == 64
    assert stat.S_IMODE((tmp_path / identity.FILE).stat().st_mode) == 0o600
    who = identity.speaker(identity.routing_id("0123456789ab", key))
    assert who.agent == "0123456789ab" and who.key and key not in who.key


@pytest.mark.parametrize("what", ["empty", "half", "open", "link", "words"])
def test_a_key_that_is_not_to_be_trusted_is_made_anew(tmp_path: Path, what: str) -> None:
    path, good = tmp_path / identity.FILE, identity.new_key()
    if what == "link":
        (tmp_path / "elsewhere").write_text(good)
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError):  # in a folder of mode 0700 nobody else makes one
            identity.own_key(tmp_path)
        return
    path.write_text({"empty": "", "half": good[:30], "words": "x" * 64}.get(what, good))
    path.chmod(0o644 if what == "open" else 0o600)
    assert identity.own_key(tmp_path) not in (good, "", good[:30], "x" * 64)
    assert os.stat(path).st_mode & 0o077 == 0


@given(st.binary(max_size=255))
def test_any_bytes_are_somebody(name: bytes) -> None:
    who = identity.speaker(name)
    assert who.key == "" or len(who.key) == 32
