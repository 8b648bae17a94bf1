"""What every launcher keeps to. One suite: on this machine, and on a real cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from worlds import LauncherWorld

from launchers import load
from supervisor.config.torchx import SCHEDULERS
from supervisor.core.errors import TransientError, UserError
from supervisor.core.ports import LAUNCHERS, Launcher, LaunchSpec
from supervisor.host import procfs

SPEC = LaunchSpec(
    job_name="sv-run-0", nodes=2, agent_argv=("/bin/agent",), folder="/tmp/x", exclude=("local-1",)
)


def test_a_name_that_is_not_in_the_table() -> None:
    with pytest.raises(UserError, match="'slurm' is unknown; valid: local, sbatch, torchx"):
        load("slurm")


OPTIONS = [{"scheduler": name, "python": "/x/python", "args": {}} for name in sorted(SCHEDULERS)]


@pytest.fixture(
    params=[(name, {}) for name in sorted(LAUNCHERS) if name != "torchx"]
    + [("torchx", options) for options in OPTIONS],
    ids=lambda given: "-".join([given[0], *given[1].values()][:2]),
)
def launcher(request: pytest.FixtureRequest) -> Launcher:
    name, options = request.param
    return load(name, **options)


def test_plan_is_pure(launcher: Launcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = launcher.plan(SPEC)
    monkeypatch.chdir(tmp_path)
    for name in ("PATH", "SLURM_CONF", "SUPERV_SITE"):
        monkeypatch.setenv(name, "/nowhere")
    assert launcher.plan(SPEC) == first
    assert first.job_name == SPEC.job_name
    assert first.script.startswith("#!/bin/")
    assert list(tmp_path.iterdir()) == []


# --- submission and polling ---


def test_two_submissions_make_one_job(world: LauncherWorld) -> None:
    job, nodes = world.started()
    assert world.submit() == job
    assert [found["job_id"] for found in world.ask("find", world.name)] == [job]
    assert [world.starts(node) for node in nodes] == [1, 1, 1]


def test_a_running_job_has_its_nodes_and_agents_know_their_job(world: LauncherWorld) -> None:
    job, nodes = world.started()
    status = world.poll(job)
    assert (status["state"], status["job_name"], status["down"]) == ("running", world.name, [])
    assert len(set(nodes)) == 3
    told = {(world.dir / f"starts.{node}").read_text().split()[1] for node in nodes}
    assert told == {job}


def test_excluded_nodes_are_not_used(world: LauncherWorld) -> None:
    _, nodes = world.started()
    world.end()
    _, others = world.started(job_name=f"{world.name}-2", exclude=[nodes[1]])
    assert len(others) == 3
    assert nodes[1] not in others


def test_a_job_that_nobody_knows_is_forgotten(world: LauncherWorld) -> None:
    status = world.poll("99999")
    assert status["state"] == "forgotten"
    assert status["reason"]


def test_cancel_tells_the_agents_and_a_second_one_does_nothing(world: LauncherWorld) -> None:
    job, nodes = world.started()
    world.ask("cancel", job)
    world.wait(lambda: world.poll(job)["state"] == "cancelled")
    assert all((world.dir / f"terms.{node}").exists() for node in nodes)
    world.ask("cancel", job)
    world.ask("cancel", "99999")
    assert world.poll(job)["state"] == "cancelled"


def test_a_job_ends_when_its_agents_have_left(world: LauncherWorld) -> None:
    job, _ = world.started()
    (world.dir / "leave").touch()
    world.wait(lambda: world.poll(job)["state"] == "ended")
    assert job in [found["job_id"] for found in world.ask("find", world.name)]


# --- agents ---


def test_a_killed_agent_comes_back_and_the_others_notice_nothing(world: LauncherWorld) -> None:
    _, nodes = world.started()
    world.kill(nodes[1], loop=False)
    world.wait(lambda: world.starts(nodes[1]) == 2)
    world.beats(*nodes)
    assert (world.starts(nodes[0]), world.starts(nodes[2])) == (1, 1)


def test_start_agent_on_a_node_without_one(world: LauncherWorld) -> None:
    job, nodes = world.started()
    world.kill(nodes[1], loop=True)
    world.ask("start_agent", job, nodes[1], world.agent, world.private)
    world.wait(lambda: world.starts(nodes[1]) == 2)
    world.beats(*nodes)


def test_start_agent_beside_a_living_one_changes_nothing(world: LauncherWorld) -> None:
    job, nodes = world.started()
    world.ask("start_agent", job, nodes[1], world.agent, world.private)
    for _ in range(3):
        world.beats(*nodes)
    assert world.starts(nodes[1]) == 1


def test_start_agent_where_there_is_no_such_node(world: LauncherWorld) -> None:
    job, _ = world.started()
    with pytest.raises(TransientError, match="no agent can be started on n9"):
        world.ask("start_agent", job, "n9", world.agent, world.private)


# --- files ---


def test_send_file_is_for_the_user_alone_and_takes_no_name_that_is_there(
    world: LauncherWorld,
) -> None:
    job, nodes = world.started()
    path = f"{world.private}/key.1"
    secret = b"\0key " * 700
    world.ask("send_file", job, secret, path)
    with pytest.raises(TransientError, match="File exists"):
        world.ask("send_file", job, b"other", path)
    for node in nodes:
        assert world.file(node, path) == (secret, 0o600)
        names = world.stat(node, world.private).splitlines()[1:]
        assert [name for name in names if name.startswith("key")] == ["key.1"]


def test_the_folder_is_the_users_alone_and_agents_find_it(world: LauncherWorld) -> None:
    """Made before the agent starts, named in its environment, and in nobody's argv."""
    job, nodes = world.started()
    for node in nodes:
        assert world.stat(node, world.private).split()[0] == "700"
    agent = min(world.pids(nodes[0], f"/bin/sh {world.agent[0]}"))
    assert (procfs.environ(agent) or {})["SUPERV_NODE_FOLDER"] == world.private
    assert not world.pids(nodes[0], world.private)
    world.ask("cancel", job)


def test_send_file_to_a_job_that_is_gone(world: LauncherWorld) -> None:
    with pytest.raises(TransientError):
        world.ask("send_file", "99999", b"key", str(world.dir / "keys"))
