"""The sbatch launcher, whatever Slurm's commands answer: programs on PATH stand in for them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from launchers.sbatch import Sbatch
from launchers.slurm import Slurm
from supervisor.core.errors import TransientError, UserError
from supervisor.core.ports import JobState, LaunchSpec

SPEC = LaunchSpec(job_name="sv-run-0", nodes=2, agent_argv=("/bin/agent",), exclude=("n1",))


# --- Slurm's commands as programs on PATH ---


class Programs:
    """A folder of programs that stand where Slurm's are, and what they were called with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        self.put("sinfo", "case $* in *%P*) echo 'main*|n[1-4]';; *) echo 'n1|idle';; esac")
        self.put("scontrol", "echo 'AccountingStorageType   = accounting_storage/none'")
        self.put("squeue", "exit 0")
        self.put("sbatch", "cat > script; echo 7")
        self.put("scancel", "exit 0")

    def put(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/sh\ncd {self.folder}\necho "{name} $*" >> calls\n{body}\n')
        path.chmod(0o755)

    def called(self, name: str) -> list[str]:
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [line for line in lines if line.split()[0] == name]

    def sbatch(self, deadline_s: float = 20) -> Sbatch:
        env = {"PATH": f"{self.folder}:/usr/bin:/bin", "SBATCH_PARTITION": "other"}
        return Sbatch(slurm=Slurm(deadline_s=deadline_s, env=env))


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def test_submit_gives_the_script_to_standard_input(programs: Programs) -> None:
    sbatch = programs.sbatch()
    plan = sbatch.plan(SPEC)
    assert asyncio.run(sbatch.submit(plan)) == "7"
    assert (programs.folder / "script").read_text() == plan.script
    assert programs.called("sbatch") == [" ".join(plan.argv)]


def test_an_active_job_of_that_name_is_returned(programs: Programs) -> None:
    programs.put("squeue", "echo '5|RUNNING|None|n[2-3]|sv-run-0'")
    sbatch = programs.sbatch()
    assert asyncio.run(sbatch.submit(sbatch.plan(SPEC))) == "5"
    assert programs.called("sbatch") == []


@pytest.mark.parametrize("state", ["COMPLETED", "CANCELLED", "COMPLETING", "NODE_FAIL"])
def test_an_ended_job_of_that_name_is_not(programs: Programs, state: str) -> None:
    programs.put("squeue", f"echo '5|{state}|None|n[2-3]|sv-run-0'")
    sbatch = programs.sbatch()
    assert asyncio.run(sbatch.submit(sbatch.plan(SPEC))) == "7"


def test_of_two_twins_the_younger_is_cancelled(programs: Programs) -> None:
    programs.put("squeue", "echo '12|PENDING|Dependency||sv-run-0\n5|RUNNING|None|n2|sv-run-0'")
    sbatch = programs.sbatch()
    assert asyncio.run(sbatch.submit(sbatch.plan(SPEC))) == "5"
    assert programs.called("scancel") == ["scancel 12"]


def test_without_knowing_whether_the_job_exists_nothing_is_submitted(programs: Programs) -> None:
    programs.put("squeue", "echo '5|HIBERNATING|None|n2|sv-run-0'")
    sbatch = programs.sbatch()
    with pytest.raises(TransientError, match="HIBERNATING"):
        asyncio.run(sbatch.submit(sbatch.plan(SPEC)))
    assert programs.called("sbatch") == []


@pytest.mark.parametrize(
    "lost",
    [
        "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv "
        "operation' >&2; exit 1",
        "kill -9 $$",
        "sleep 60",
    ],
)
def test_a_lost_reply_is_looked_up_before_anything_else(programs: Programs, lost: str) -> None:
    programs.put("squeue", "[ -e there ] && echo '9|PENDING|Priority||sv-run-0'; exit 0")
    programs.put("sbatch", f"touch there; {lost}")
    sbatch = programs.sbatch(deadline_s=1)
    assert asyncio.run(sbatch.submit(sbatch.plan(SPEC))) == "9"
    assert len(programs.called("sbatch")) == 1


def test_an_unclear_answer_without_a_job_is_transient(programs: Programs) -> None:
    programs.put("sbatch", "echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1")
    sbatch = programs.sbatch()
    with pytest.raises(TransientError, match="no job sv-run-0 is in the queue"):
        asyncio.run(sbatch.submit(sbatch.plan(SPEC)))


def test_nodes_that_slurm_does_not_know_are_not_excluded(
    programs: Programs, caplog: pytest.LogCaptureFixture
) -> None:
    sbatch = programs.sbatch()
    spec = LaunchSpec(job_name="sv-run-0", nodes=2, exclude=("n1", "gone7", "gone8"))
    assert asyncio.run(sbatch.submit(sbatch.plan(spec))) == "7"
    assert programs.called("sbatch")[0].endswith(" --exclude=n1")
    assert "not excluding gone[7-8]" in caplog.text


@pytest.mark.parametrize(
    ("slurm", "nodes", "says"),
    [
        ({"partition": "nope"}, 1, "slurm: partition: 'nope' is unknown; valid: main"),
        ({}, 4, "4 nodes are asked for, but partition main has 3 that are not excluded"),
    ],
)
def test_what_could_never_start_is_refused(
    programs: Programs, slurm: dict[str, str], nodes: int, says: str
) -> None:
    sbatch = programs.sbatch()
    spec = LaunchSpec(job_name="sv-run-0", nodes=nodes, slurm=slurm, exclude=("n1",))
    with pytest.raises(UserError) as error:
        asyncio.run(sbatch.submit(sbatch.plan(spec)))
    assert says in str(error.value)
    assert programs.called("sbatch") == []


def test_poll_never_raises_and_a_hung_squeue_is_unknown(programs: Programs) -> None:
    programs.put("squeue", "sleep 60")
    sbatch = programs.sbatch(deadline_s=0.3)
    polled = asyncio.run(sbatch.poll(["1", "2"]))
    assert {status.state for status in polled.values()} == {JobState.UNKNOWN}
    assert "squeue did not answer" in polled["2"].reason
    with pytest.raises(TransientError, match="squeue did not answer"):
        asyncio.run(sbatch.find("sv-"))


def test_a_job_that_squeue_forgot_is_unknown_without_accounting(programs: Programs) -> None:
    error = "slurm_load_jobs error: Invalid job id specified"
    programs.put("squeue", f"echo '{error}' >&2; exit 1")
    status = asyncio.run(programs.sbatch().poll(["7"]))["7"]
    assert (status.state, programs.called("sacct")) == (JobState.UNKNOWN, [])
    assert "this cluster has no accounting" in status.reason


def test_a_job_that_squeue_forgot_is_in_accounting(programs: Programs) -> None:
    programs.put("scontrol", "echo 'AccountingStorageType   = accounting_storage/slurmdbd'")
    programs.put("sacct", "echo '7|CANCELLED by 1000|None|n[1-2]|sv-run-0'")
    sbatch = programs.sbatch()
    status = asyncio.run(sbatch.poll(["7"]))["7"]
    assert (status.state, status.nodes) == (JobState.CANCELLED, ("n1", "n2"))
    assert [job.job_id for job in asyncio.run(sbatch.find("sv-run-"))] == ["7"]


def test_failing_sinfo_leaves_the_jobs_state_known(programs: Programs) -> None:
    programs.put("squeue", "echo '5|RUNNING|None|n[2-3]|sv-run-0'")
    programs.put("sinfo", "echo 'slurm_load_node: Socket timed out' >&2; exit 1")
    status = asyncio.run(programs.sbatch().poll(["5"]))["5"]
    assert (status.state, status.nodes, status.down) == (JobState.RUNNING, ("n2", "n3"), ())
    assert "nodes unknown" in status.reason


def test_without_slurm_one_line_says_so(tmp_path: Path) -> None:
    sbatch = Sbatch(slurm=Slurm(env={"PATH": str(tmp_path)}))
    with pytest.raises(UserError, match="squeue is not on PATH here"):
        asyncio.run(sbatch.submit(sbatch.plan(SPEC)))
    assert asyncio.run(sbatch.poll(["1"]))["1"].state is JobState.UNKNOWN


def test_send_file_shows_the_content_to_nobody(programs: Programs) -> None:
    programs.put(
        "sbcast",
        'env > env; cat "$3" > content; stat -c %a "$3" > mode; tr "\\0" " " < /proc/$$/cmdline'
        " > argv",
    )
    asyncio.run(programs.sbatch().send_file("5", b"s3cret", "/run/sv/keys"))
    left = {name: (programs.folder / name).read_text() for name in ("env", "argv", "mode", "calls")}
    assert (programs.folder / "content").read_text() == "s3cret"
    assert left["mode"] == "600\n"
    assert "s3cret" not in str(left)
    assert "--jobid=5" in left["calls"]
    source = left["calls"].split()[3]
    assert not Path(source).exists()


def test_send_file_names_the_nodes_that_missed_it(programs: Programs) -> None:
    programs.put(
        "sbcast",
        'for n in n3 n4; do echo "sbcast: error: REQUEST_FILE_BCAST($n): No route" >&2; done; '
        "exit 1",
    )
    with pytest.raises(TransientError, match=r"not on n\[3-4\]: No route"):
        asyncio.run(programs.sbatch().send_file("5", b"s3cret", "/run/sv/keys"))
