"""The sbatch launcher on real Slurm: submission, polling, and agents that outlive their nodes."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from lab.cluster import Lab
from lab.node import LabProcess
from tests.processes import send

pytestmark = pytest.mark.lab
REPO = Path(__file__).resolve().parents[2]
NODES = ("n1", "n2", "n3")
WITHIN_S = 90
_numbers = count(1)

# An agent in its simplest form: writes a line per start, beats, leaves when told, runs once a node.
AGENT = """#!/bin/sh
cd "$1" || exit 1
exec 9>/tmp/agent.lock
flock --nonblock 9 || exit 75
echo "$(date +%T.%N) $SLURMD_NODENAME step $SLURM_STEP_ID loop $PPID" >>history
echo "$$" >>"starts.$SLURMD_NODENAME"
trap 'echo term >>"terms.$SLURMD_NODENAME"; exit 0' TERM
while [ ! -e leave ]; do
  date +%s.%N >"beat.$SLURMD_NODENAME"
  sleep 0.2 9>&-
done
exit 0
"""


class Cluster:
    """The launcher on the lab's login node, and what its agents have written."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self.dir = lab.home / name
        self.bin = self.dir / "bin"
        uid = lab.home.stat().st_uid
        for folder in (self.dir, self.bin):
            folder.mkdir()
            os.chown(folder, uid, uid)
        self.private = str(self.dir / "superv-private")
        self.agent = (str(self.dir / "agent.sh"), str(self.dir))
        Path(self.agent[0]).write_text(AGENT)
        Path(self.agent[0]).chmod(0o755)

    def ask(
        self,
        method: str,
        *args: Any,
        deadline_s: float = 30,
        path: str = "",
        script_path: str = "",
        **spec: Any,
    ) -> Any:
        order = {"method": method, "args": args, "kwargs": spec, "deadline_s": deadline_s}
        order["script_path"] = script_path
        env = {"PYTHONPATH": str(REPO), **({"PATH": path} if path else {})}
        done = self.lab.run(
            "login",
            [sys.executable, str(REPO / "tests/lab/launcher_driver.py")],
            stdin=json.dumps(order).encode(),
            env=env,
            deadline_s=deadline_s * 4,
        )
        assert done.rc == 0, done.why() + done.err
        return json.loads(done.out)

    def result(self, method: str, *args: Any, **options: Any) -> Any:
        answer = self.ask(method, *args, **options)
        assert "result" in answer, answer
        return answer["result"]

    def submit(self, **options: Any) -> str:
        wanted: dict[str, Any] = {
            "job_name": self.name,
            "nodes": 3,
            "slurm": {"gres": "gpu:8"},
            "agent_argv": self.agent,
            "folder": self.private,
            **options,
        }
        job = self.result("submit", **wanted)
        assert isinstance(job, str)
        return job

    def started(self, *nodes: str) -> str:
        """Submit, and wait until the agents of the nodes (default: all) have started."""
        job = self.submit()
        self.wait(lambda: all(self.starts(node) for node in nodes or NODES))
        return job

    def poll(self, job: str, **options: Any) -> dict[str, Any]:
        status: dict[str, Any] = self.result("poll", [job], **options)[job]
        return status

    def starts(self, node: str) -> int:
        path = self.dir / f"starts.{node}"
        return len(path.read_text().split()) if path.exists() else 0

    def beat(self, node: str) -> str:
        """The newest beat; empty before the first, and while it is being written."""
        path = self.dir / f"beat.{node}"
        return path.read_text() if path.exists() else ""

    def beats(self, *nodes: str) -> None:
        """Wait until the agents of the nodes have each beaten twice from now."""
        for _ in range(2):
            seen = {node: self.beat(node) for node in nodes}
            self.wait(
                lambda seen=seen: all(  # type: ignore[misc]
                    self.beat(node) not in {"", old} for node, old in seen.items()
                )
            )

    def processes(self, node: str, words: str) -> list[LabProcess]:
        """The user's processes of a node whose command line begins so."""
        return [
            process
            for process in self.lab.processes()
            if process.node == node and " ".join(process.argv).startswith(words)
        ]

    def wait(self, reached: Callable[[], bool], within_s: float = WITHIN_S) -> None:
        end = time.monotonic() + within_s
        while not reached():
            assert time.monotonic() < end, f"not within {within_s} s\n{self.story()}"
            time.sleep(0.1)

    def log(self) -> str:
        path = Path(self.private) / "allocation.log"
        return path.read_text() if path.exists() else ""

    def story(self) -> str:
        """What tells why, where a test fails."""
        history = self.dir / "history"
        starts = history.read_text() if history.exists() else "no agent started\n"
        return f"starts:\n{starts}log:\n{self.log()}"


@pytest.fixture
def cluster(lab: Lab, request: pytest.FixtureRequest) -> Cluster:
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name[5:]).strip("-")
    return Cluster(lab, f"sv-{name}-{next(_numbers)}")  # a test that is repeated begins afresh


def test_the_cluster_says_its_name(cluster: Cluster) -> None:
    assert cluster.result("cluster") == cluster.lab.name


# --- submission ---


def test_two_submissions_make_one_job(cluster: Cluster) -> None:
    job = cluster.submit()
    assert cluster.submit() == job
    assert [found["job_id"] for found in cluster.result("find", cluster.name)] == [job]


def test_a_lost_reply_makes_one_job(cluster: Cluster) -> None:
    shim = cluster.bin
    (shim / "sbatch").write_text(
        '#!/bin/sh\n/usr/bin/sbatch "$@" >/dev/null\n'
        "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
        "' >&2\nexit 1\n"
    )
    (shim / "sbatch").chmod(0o755)
    job = cluster.submit(path=f"{shim}:/usr/bin:/bin")
    assert [found["job_id"] for found in cluster.result("find", cluster.name)] == [job]


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"partition": "nope"}, "RefusalError", "slurm: partition: 'nope' is unknown; valid: main"),
        ({"time": "bogus"}, "RefusalError", "Slurm refused the job: Invalid --time specification"),
        ({"gres": "tpu:8"}, "RefusalError", "slurm: gres: "),
        ({"constraint": "h100"}, "RefusalError", "slurm: constraint: "),
        ({"nodelist": "n77"}, "UserError", "slurm: nodelist: superv chooses nodes"),
        ({"colour": "red"}, "UserError", "slurm: 'colour': no sbatch option that superv passes on"),
    ],
)
def test_refusals(cluster: Cluster, options: dict[str, str], kind: str, says: str) -> None:
    error, text = cluster.ask("submit", job_name=cluster.name, nodes=1, slurm=options)["error"]
    assert (error, says in text, "\n" in text) == (kind, True, False), text


def test_more_nodes_than_there_are(cluster: Cluster) -> None:
    spec = {"job_name": cluster.name, "nodes": 3, "exclude": ["n1"]}
    kind, text = cluster.ask("submit", **spec)["error"]
    assert (kind, "has 2 that are not excluded" in text) == ("TooFewNodesError", True), text


def test_unknown_exclusions_do_not_stop_a_submission(cluster: Cluster) -> None:
    job = cluster.submit(nodes=2, exclude=["n1", "long-gone7"])
    cluster.wait(lambda: cluster.poll(job)["nodes"] == ["n2", "n3"])


# --- polling and cancelling ---


def test_cancel_and_cancel_again(cluster: Cluster) -> None:
    job = cluster.started()
    status = cluster.poll(job)
    assert (status["state"], status["nodes"], status["down"]) == ("running", list(NODES), [])
    cluster.result("cancel", job)
    cluster.wait(lambda: cluster.poll(job)["state"] == "cancelled")
    assert cluster.poll(job)["raw"].startswith("CANCELLED")
    cluster.result("cancel", job)
    cluster.result("cancel", "99999")


def test_a_job_that_slurm_does_not_know(cluster: Cluster) -> None:
    status = cluster.poll("99999")
    assert (status["state"], "no accounting" in status["reason"]) == ("forgotten", True)


def test_paused_controller_is_unknown(cluster: Cluster) -> None:
    job = cluster.started()
    cluster.lab.pause_controller()
    assert cluster.poll(job, deadline_s=2)["state"] == "unknown"
    assert cluster.ask("find", "sv-", deadline_s=2)["error"][0] == "TransientError"
    spec = {"job_name": "sv-other", "nodes": 1}
    assert cluster.ask("submit", deadline_s=2, **spec)["error"][0] == "TransientError"
    cluster.beats(*NODES)
    cluster.lab.resume_controller()
    cluster.wait(lambda: cluster.poll(job)["state"] == "running")


def test_a_cancel_that_was_not_answered_may_still_happen(cluster: Cluster) -> None:
    job = cluster.started()
    cluster.lab.pause_controller()
    assert cluster.ask("cancel", job, deadline_s=2)["error"][0] == "TransientError"
    cluster.lab.resume_controller()  # the request waited in its socket
    cluster.wait(lambda: cluster.poll(job)["state"] == "cancelled")


def test_a_submission_that_was_not_answered_is_found_when_it_happens(cluster: Cluster) -> None:
    shim = cluster.bin
    (shim / "sbatch").write_text(
        f"#!/bin/sh\ntouch {shim}/asked\nuntil [ -e {shim}/paused ]; do sleep 0.05; done\n"
        'exec /usr/bin/sbatch "$@"\n'
    )
    (shim / "sbatch").chmod(0o755)
    with ThreadPoolExecutor(1) as pool:
        wanted = {"job_name": cluster.name, "nodes": 1, "agent_argv": cluster.agent}
        asked = pool.submit(
            cluster.ask, "submit", deadline_s=5, path=f"{shim}:/usr/bin:/bin", **wanted
        )
        cluster.wait((shim / "asked").exists)
        cluster.lab.pause_controller()
        (shim / "paused").touch()
        assert asked.result()["error"][0] == "TransientError"
    cluster.lab.resume_controller()
    job = cluster.submit(nodes=1)
    cluster.wait(lambda: cluster.starts("n1") + cluster.starts("n2") + cluster.starts("n3") == 1)
    active = [
        found
        for found in cluster.result("find", cluster.name)
        if found["state"] in {"pending", "running"}
    ]
    assert [found["job_id"] for found in active] == [job]


def test_sigterm_to_the_script_gives_the_agents_time(cluster: Cluster) -> None:
    agent = Path(cluster.agent[0])
    agent.write_text(AGENT.replace("echo term", "sleep 3; echo term"))
    job = cluster.started()
    done = cluster.lab.run("login", ["scancel", "--batch", "--signal=TERM", job])
    assert done.rc == 0, done.why()
    cluster.wait(lambda: cluster.poll(job)["raw"] == "COMPLETED")
    assert all((cluster.dir / f"terms.{node}").exists() for node in NODES)
    assert "SIGTERM: telling the agents" in cluster.log()


# --- agents ---


def test_agents_leave_when_told_and_the_job_completes(cluster: Cluster) -> None:
    job = cluster.started()
    (cluster.dir / "leave").touch()
    cluster.wait(lambda: cluster.poll(job)["raw"] == "COMPLETED")
    assert "all agents left as they were told" in cluster.log()


def test_a_killed_agent_comes_back(cluster: Cluster) -> None:
    cluster.started()
    cluster.beats(*NODES)
    n1, n2, n3 = (cluster.starts(node) for node in NODES)
    agent = cluster.processes("n2", f"/bin/sh {cluster.agent[0]}")[0]
    os.kill(agent.pid, signal.SIGKILL)
    cluster.wait(lambda: cluster.starts("n2") == n2 + 1)
    cluster.beats(*NODES)
    assert (cluster.starts("n1"), cluster.starts("n3")) == (n1, n3), cluster.story()
    assert "n2: the agent ended with 137" in cluster.log()


@pytest.mark.parametrize("off", ["n3", "n1"], ids=["another", "the-batch-host"])
def test_a_node_goes_off_and_the_other_agents_live_on(cluster: Cluster, off: str) -> None:
    job = cluster.started()
    cluster.beats(*NODES)  # a node fresh from its boot may have needed a second start by now
    stay = [node for node in NODES if node != off]
    before = [cluster.starts(node) for node in stay]
    cluster.lab.poweroff(off)
    cluster.wait(lambda: cluster.poll(job)["nodes"] == stay)  # Slurm has taken the node out
    cluster.beats(*stay)
    status = cluster.poll(job)
    assert (status["state"], status["down"]) == ("running", [])
    assert [cluster.starts(node) for node in stay] == before, cluster.story()


def test_a_silent_node_is_reported_down_while_it_is_in_the_job(cluster: Cluster) -> None:
    job = cluster.started()
    cluster.lab.poweroff("n3")
    seen: list[list[str]] = []

    def gone() -> bool:
        status = cluster.poll(job)
        seen.append(status["down"])
        return status["nodes"] == ["n1", "n2"]

    cluster.wait(gone)
    assert ["n3"] in seen


def test_a_killed_srun_is_made_up_for(cluster: Cluster) -> None:
    cluster.started()
    cluster.beats(*NODES)
    before = {node: cluster.starts(node) for node in NODES}
    for process in cluster.processes("n1", "srun "):
        send(process.pid, signal.SIGTERM)  # on which srun kills its tasks
    cluster.wait(lambda: all(cluster.starts(node) > before[node] for node in NODES))
    cluster.beats(*NODES)


@pytest.mark.soak
def test_a_killed_srun_and_a_dead_node_together(cluster: Cluster) -> None:
    cluster.started()
    cluster.beats(*NODES)
    before = {node: cluster.starts(node) for node in ("n1", "n2")}
    cluster.lab.poweroff("n3")
    for process in cluster.processes("n1", "srun "):
        send(process.pid, signal.SIGTERM)
    cluster.wait(lambda: all(cluster.starts(node) > before[node] for node in before))
    cluster.beats("n1", "n2")


@pytest.mark.soak
def test_agents_need_no_srun(cluster: Cluster) -> None:
    job = cluster.started()
    cluster.beats(*NODES)
    before = [cluster.starts(node) for node in NODES]
    for process in cluster.processes("n1", "srun "):
        send(process.pid)
    cluster.wait(lambda: "n3: the step ended with 75" in cluster.log())
    cluster.beats(*NODES)
    assert [cluster.starts(node) for node in NODES] == before, cluster.story()
    (cluster.dir / "leave").touch()
    cluster.wait(lambda: cluster.poll(job)["raw"] == "COMPLETED")


def test_a_dead_node_at_the_start_costs_itself_only(cluster: Cluster) -> None:
    # The script's srun waits until the node is dead: a job for it can't be granted any more then.
    shim = cluster.bin
    (shim / "srun").write_text(
        f"#!/bin/sh\ntouch {shim}/granted\nuntil [ -e {shim}/dead ]; do sleep 0.05; done\n"
        'exec /usr/bin/srun "$@"\n'
    )
    (shim / "srun").chmod(0o755)
    cluster.submit(script_path=f"{shim}:/usr/bin:/bin")
    cluster.wait((shim / "granted").exists)
    cluster.lab.poweroff("n3")
    (shim / "dead").touch()
    cluster.wait(lambda: cluster.starts("n1") > 0 and cluster.starts("n2") > 0)
    cluster.beats("n1", "n2")
    assert cluster.starts("n3") == 0


# --- files and single agents ---


def test_send_file(cluster: Cluster) -> None:
    job = cluster.started()
    secret = b"\0key " * 700
    cluster.result("send_file", job, base64.b64encode(secret).decode(), "/tmp/sv-keys")
    other = base64.b64encode(b"other").decode()
    kind, text = cluster.ask("send_file", job, other, "/tmp/sv-keys")["error"]
    assert (kind, "File exists" in text) == ("TransientError", True), text
    for node in NODES:
        stat = cluster.lab.run(node, ["stat", "--format=%a %U %s", "/tmp/sv-keys"])
        assert stat.out == f"600 superv {len(secret)}\n"
        assert cluster.lab.run(node, ["cat", "/tmp/sv-keys"]).out.encode() == secret


@pytest.mark.soak
def test_send_file_names_the_dead_node_and_reaches_the_others(cluster: Cluster) -> None:
    job = cluster.started()
    cluster.lab.poweroff("n2")
    content = base64.b64encode(b"key").decode()
    kind, text = cluster.ask("send_file", job, content, "/tmp/sv-keys")["error"]
    assert (kind, "not on n2" in text) == ("TransientError", True), text
    for node in ("n1", "n3"):
        assert cluster.lab.run(node, ["cat", "/tmp/sv-keys"]).out == "key"


def test_send_file_to_a_job_that_is_gone(cluster: Cluster) -> None:
    content = base64.b64encode(b"key").decode()
    kind, text = cluster.ask("send_file", "99999", content, "/tmp/sv-keys")["error"]
    assert (kind, "Invalid job id" in text) == ("TransientError", True), text


@pytest.mark.soak
def test_start_agent_on_one_node(cluster: Cluster) -> None:
    job = cluster.started()
    cluster.beats(*NODES)
    before = cluster.starts("n2")
    loop = cluster.processes("n2", "/usr/bin/sh -c # Keeps one agent alive")
    agent = cluster.processes("n2", f"/bin/sh {cluster.agent[0]}")
    assert (len(loop), len(agent)) == (1, 1)
    for process in (*loop, *agent):
        os.kill(process.pid, signal.SIGKILL)
    cluster.result("start_agent", job, "n2", cluster.agent, cluster.private)
    cluster.wait(lambda: cluster.starts("n2") == before + 1)
    # Its srun is killed after its time to start the step; the agent stays.
    cluster.wait(lambda: not cluster.processes("login", "srun "))
    cluster.beats(*NODES)


def test_start_agent_beside_a_living_one_changes_nothing(cluster: Cluster) -> None:
    job = cluster.started()
    cluster.beats(*NODES)
    before = cluster.starts("n2")
    cluster.result("start_agent", job, "n2", cluster.agent, cluster.private)
    cluster.wait(lambda: not cluster.processes("login", "srun "))
    cluster.beats(*NODES)
    assert cluster.starts("n2") == before, cluster.story()


def test_start_agent_where_there_is_no_such_node(cluster: Cluster) -> None:
    job = cluster.started()
    kind, text = cluster.ask("start_agent", job, "n9", cluster.agent, cluster.private)["error"]
    assert kind == "TransientError"
    assert f"no agent can be started on n9: job {job} is RUNNING on n[1-3]" in text
