"""The sbatch launcher, whatever Slurm's commands answer: programs on PATH stand in for them."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from launchers.sbatch import Sbatch
from launchers.slurm import Slurm
from supervisor.core.errors import TransientError, UserError
from supervisor.core.ports import JobState, LaunchSpec

SPEC = LaunchSpec(
    job_name="sv-run-0", nodes=2, agent_argv=("/bin/agent",), folder="/tmp/x", exclude=("n1",)
)


# --- Slurm's commands as programs on PATH ---


class SlurmPrograms:
    """A folder of programs that stand where Slurm's are, and what they were called with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = folder / "calls"
        row = "n1|main*|idle|0/4/0/4|(null)|none"
        self.put("sinfo", f"case $* in *--Node*) echo '{row}';; *) echo 'main*|n[1-4]';; esac")
        self.put("scontrol", "echo 'AccountingStorageType   = accounting_storage/none'")
        self.put("squeue", "exit 0")
        self.put("sbatch", "cat > script; echo 7")
        self.put("scancel", "exit 0")

    def put(self, name: str, body: str) -> None:
        if name == "squeue":  # as it is asked to: each row begins with a mark
            mark = 'sed "s/^/${SQUEUE_FORMAT%%|*}|/" rows'
            body = f"({body}) >rows; code=$?; {mark}; exit $code"
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
def programs(tmp_path: Path) -> SlurmPrograms:
    return SlurmPrograms(tmp_path)


def test_submit_gives_the_script_to_standard_input(programs: SlurmPrograms) -> None:
    sbatch = programs.sbatch()
    plan = sbatch.plan(SPEC)
    assert asyncio.run(sbatch.submit(plan)) == "7"
    assert (programs.folder / "script").read_text() == plan.script
    assert programs.called("sbatch") == [" ".join(plan.argv)]


def test_an_active_job_of_that_name_is_returned(programs: SlurmPrograms) -> None:
    programs.put("squeue", "echo '5|RUNNING|None|n[2-3]|sv-run-0'")
    sbatch = programs.sbatch()
    assert asyncio.run(sbatch.submit(sbatch.plan(SPEC))) == "5"
    assert programs.called("sbatch") == []


@pytest.mark.parametrize("state", ["COMPLETED", "CANCELLED", "COMPLETING", "NODE_FAIL"])
def test_an_ended_job_of_that_name_is_not(programs: SlurmPrograms, state: str) -> None:
    programs.put("squeue", f"echo '5|{state}|None|n[2-3]|sv-run-0'")
    sbatch = programs.sbatch()
    assert asyncio.run(sbatch.submit(sbatch.plan(SPEC))) == "7"


def test_of_two_twins_the_younger_is_cancelled(programs: SlurmPrograms) -> None:
    programs.put("squeue", "echo '12|PENDING|Dependency||sv-run-0\n5|RUNNING|None|n2|sv-run-0'")
    sbatch = programs.sbatch()
    assert asyncio.run(sbatch.submit(sbatch.plan(SPEC))) == "5"
    assert programs.called("scancel") == ["scancel 12"]


def test_without_knowing_whether_the_job_exists_nothing_is_submitted(
    programs: SlurmPrograms,
) -> None:
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
def test_a_lost_reply_is_looked_up_before_anything_else(programs: SlurmPrograms, lost: str) -> None:
    programs.put("squeue", "[ -e there ] && echo '9|PENDING|Priority||sv-run-0'; exit 0")
    programs.put("sbatch", f"touch there; {lost}")
    sbatch = programs.sbatch(deadline_s=1)
    assert asyncio.run(sbatch.submit(sbatch.plan(SPEC))) == "9"
    assert len(programs.called("sbatch")) == 1


def test_an_unclear_answer_without_a_job_is_transient(programs: SlurmPrograms) -> None:
    programs.put("sbatch", "echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1")
    sbatch = programs.sbatch()
    with pytest.raises(TransientError, match="no job sv-run-0 is in the queue"):
        asyncio.run(sbatch.submit(sbatch.plan(SPEC)))


def test_nodes_that_slurm_does_not_know_are_not_excluded(
    programs: SlurmPrograms, caplog: pytest.LogCaptureFixture
) -> None:
    sbatch = programs.sbatch()
    spec = LaunchSpec(job_name="sv-run-0", folder="/t", nodes=2, exclude=("n1", "gone7", "gone8"))
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
    programs: SlurmPrograms, slurm: dict[str, str], nodes: int, says: str
) -> None:
    sbatch = programs.sbatch()
    spec = LaunchSpec(job_name="sv-run-0", folder="/t", nodes=nodes, slurm=slurm, exclude=("n1",))
    with pytest.raises(UserError) as error:
        asyncio.run(sbatch.submit(sbatch.plan(spec)))
    assert says in str(error.value)
    assert programs.called("sbatch") == []


@pytest.mark.parametrize(
    ("nodes", "min_nodes", "asked"),
    [(4, 2, "2-3"), (3, 2, "2-3"), (4, 3, "3"), (3, 3, "3"), (3, 0, "3")],
)
def test_spares_that_the_cluster_has_not_hold_nothing_up(
    programs: SlurmPrograms, nodes: int, min_nodes: int, asked: str
) -> None:
    """Of four nodes one is excluded."""
    sbatch = programs.sbatch()
    sizes = {"nodes": nodes, "min_nodes": min_nodes}
    spec = LaunchSpec(job_name="sv-run-0", folder="/t", exclude=("n1",), **sizes)
    assert asyncio.run(sbatch.submit(sbatch.plan(spec))) == "7"
    assert f" --nodes={asked} " in programs.called("sbatch")[0]


def test_a_range_waits_a_moment_for_nodes_whose_job_has_just_ended(programs: SlurmPrograms) -> None:
    rows = "\\n".join(f"n{n}|main*|idle|0/4/0/4|(null)|none" for n in (1, 2, 3))
    last = "n4|main*|$s|0/4/0/4|(null)|none"
    body = "touch seen; s=completing; [ $(wc -l <seen) -lt 2 ] || s=idle; echo >>seen; "
    body += f"printf '{rows}\\n'"
    programs.put(
        "sinfo", f'case $* in *--Node*) {body}; echo "{last}";; *) echo "main*|n[1-4]";; esac'
    )
    spec = LaunchSpec(job_name="sv-run-0", folder="/t", nodes=4, min_nodes=3)
    sbatch = programs.sbatch()
    assert asyncio.run(sbatch.submit(sbatch.plan(spec))) == "7"
    order = [line.split()[0] for line in programs.calls.read_text().splitlines()]
    assert order[-1] == "sbatch" and (programs.folder / "seen").read_text().count("\n") == 3


def test_a_request_that_waits_for_nodes_that_are_out(programs: SlurmPrograms) -> None:
    """Of four nodes n1 is excluded and n2 drained; n3 is powered off, which is no trouble."""
    states = {"n1": "idle", "n2": "drained", "n3": "idle~", "n4": "allocated"}
    rows = "\n".join(f"{n}|main*|{state}|0/4/0/4|(null)|none" for n, state in states.items())
    programs.put("sinfo", f"case $* in *--Node*) echo '{rows}';; *) echo 'main*|n[1-4]';; esac")
    sbatch = programs.sbatch()
    for nodes, lacking in ((2, 0), (3, 1), (4, 2)):
        spec = LaunchSpec(job_name="sv-run-0", folder="/t", nodes=nodes, exclude=("n1", "n2"))
        found = asyncio.run(sbatch.shortage(spec))
        assert (found.lacking, found.excluded) == (lacking, ("n1",))


@pytest.mark.parametrize(
    ("complete", "down"),
    [
        ("DOWN+DRAIN", True),  # as written by `scontrol show node`
        ("down+drain+not_responding", True),  # by sinfo of 22.05
        ("idle+drain+not_responding", True),
        ("idle+drain", False),
        ("allocated+drain+planned", False),
        ("sinfo: error: Invalid job format specification", False),  # before it had StateComplete
    ],
)
def test_a_drain_hides_no_death(programs: SlurmPrograms, complete: str, down: bool) -> None:
    state = "draining" if "allocated" in complete else "drained"
    row, whole = f"n2|main*|{state}|0/4/0/4|(null)|none", f"n2     {complete}"
    programs.put("sinfo", f"case $* in *StateComplete*) echo '{whole}';; *) echo '{row}';; esac")
    assert asyncio.run(programs.sbatch()._slurm.nodes_of(["n2"]))["n2"].down is down


@pytest.mark.parametrize(
    ("first", "then", "looks"),
    [
        ("idle*", "idle", 2),  # a drain was lifted just now
        ("unknown", "idle", 2),  # scontrol reconfigure
        ("idle*", "down*", 2),
        ("down*", "down*", 1),  # it lasts
        ("allocated", "idle", 1),
    ],
)
def test_a_state_that_may_pass_is_looked_at_again(
    programs: SlurmPrograms, first: str, then: str, looks: int
) -> None:
    row = "n1|main*|$s|0/4/0/4|(null)|none"
    programs.put("sinfo", f's={first}; [ -e seen ] && s={then}; touch seen; echo "{row}"')
    found = asyncio.run(programs.sbatch()._slurm.settled_nodes(["n1"]))
    assert found["n1"].state == (then if looks == 2 else first)
    assert len(programs.called("sinfo")) == looks


def test_poll_never_raises_and_a_hung_squeue_is_unknown(programs: SlurmPrograms) -> None:
    programs.put("squeue", "sleep 60")
    sbatch = programs.sbatch(deadline_s=0.3)
    polled = asyncio.run(sbatch.poll(["1", "2"]))
    assert {status.state for status in polled.values()} == {JobState.UNKNOWN}
    assert "squeue did not answer" in polled["2"].reason
    with pytest.raises(TransientError, match="squeue did not answer"):
        asyncio.run(sbatch.find("sv-"))


def test_a_job_that_squeue_forgot_is_forgotten_without_accounting(programs: SlurmPrograms) -> None:
    error = "slurm_load_jobs error: Invalid job id specified"
    programs.put("squeue", f"echo '{error}' >&2; exit 1")
    status = asyncio.run(programs.sbatch().poll(["7"]))["7"]
    assert (status.state, programs.called("sacct")) == (JobState.FORGOTTEN, [])
    assert "this cluster has no accounting" in status.reason


def test_a_job_that_squeue_forgot_is_in_accounting(programs: SlurmPrograms) -> None:
    programs.put("scontrol", "echo 'AccountingStorageType   = accounting_storage/slurmdbd'")
    programs.put("sacct", "echo '7|CANCELLED by 1000|None|n[1-2]|sv-run-0'")
    sbatch = programs.sbatch()
    status = asyncio.run(sbatch.poll(["7"]))["7"]
    assert (status.state, status.nodes) == (JobState.CANCELLED, ("n1", "n2"))
    assert [job.job_id for job in asyncio.run(sbatch.find("sv-run-"))] == ["7"]


@pytest.mark.parametrize(
    ("sacct", "state"),
    [
        ("echo '7|RUNNING|None|n[1-2]|sv-run-0'", JobState.FORGOTTEN),  # nobody told it the end
        ("exit 0", JobState.FORGOTTEN),
        ("echo 'sacct: error: Problem talking to the database' >&2; exit 1", JobState.UNKNOWN),
        ("echo '7|NODE_FAIL|None|n[1-2]|sv-run-0'", JobState.ENDED),
    ],
)
def test_what_accounting_says_of_a_job_that_squeue_forgot(
    programs: SlurmPrograms, sacct: str, state: JobState
) -> None:
    programs.put("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    programs.put("scontrol", "echo 'AccountingStorageType   = accounting_storage/slurmdbd'")
    programs.put("sacct", sacct)
    assert asyncio.run(programs.sbatch().poll(["7"]))["7"].state is state


def test_failing_sinfo_leaves_the_jobs_state_known(programs: SlurmPrograms) -> None:
    programs.put("squeue", "echo '5|RUNNING|None|n[2-3]|sv-run-0'")
    programs.put("sinfo", "echo 'slurm_load_node: Socket timed out' >&2; exit 1")
    status = asyncio.run(programs.sbatch().poll(["5"]))["5"]
    assert (status.state, status.nodes, status.down) == (JobState.RUNNING, ("n2", "n3"), ())
    assert "nodes unknown" in status.reason


CONFIGLESS = (
    "echo 'error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host' >&2; "
    "echo 'fatal: Could not establish a configuration source' >&2; exit 1"
)


@pytest.mark.parametrize("command", ["squeue", "sinfo", "sbatch"])
def test_a_configless_client_without_slurmctld_is_waited_for(
    programs: SlurmPrograms, command: str
) -> None:
    programs.put(command, CONFIGLESS)
    sbatch = programs.sbatch()
    with pytest.raises(TransientError, match=r"no slurm.conf here.* source; set SLURM_CONF"):
        asyncio.run(sbatch.submit(sbatch.plan(SPEC)))


@pytest.mark.parametrize("body", [CONFIGLESS, "exit 5", "echo odd; exit 0", "echo nothing"])
def test_whatever_slurm_says_a_poll_is_an_answer_or_none(
    programs: SlurmPrograms, body: str
) -> None:
    """Any command may say anything: nothing but an answer is taken for one."""
    for command in ("squeue", "sinfo", "scontrol", "sacct"):
        programs.put(command, body)
    assert asyncio.run(programs.sbatch().poll(["7"]))["7"].state is JobState.UNKNOWN


def test_without_slurm_one_line_says_so(tmp_path: Path) -> None:
    sbatch = Sbatch(slurm=Slurm(env={"PATH": str(tmp_path)}))
    with pytest.raises(UserError, match="squeue is not on PATH here"):
        asyncio.run(sbatch.submit(sbatch.plan(SPEC)))
    assert asyncio.run(sbatch.poll(["1"]))["1"].state is JobState.UNKNOWN


def test_send_file_shows_the_content_to_nobody(programs: SlurmPrograms) -> None:
    programs.put(
        "sbcast",
        'env > env; cat "$2" > content; stat -c %a "$2" > mode; tr "\\0" " " < /proc/$$/cmdline'
        " > argv",
    )
    asyncio.run(programs.sbatch().send_file("5", b"s3cret", "/run/sv/keys"))
    left = {name: (programs.folder / name).read_text() for name in ("env", "argv", "mode", "calls")}
    assert (programs.folder / "content").read_text() == "s3cret"
    assert left["mode"] == "600\n"
    assert "s3cret" not in str(left)
    assert "--jobid=5" in left["calls"]
    source = left["calls"].split()[2]
    assert not Path(source).exists()


def test_nothing_is_sent_from_a_folder_where_others_may_swap_it(
    programs: SlurmPrograms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.put("sbcast", "")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "open"))
    with pytest.raises(TransientError, match=r"TMPDIR: .*/open has mode 0777: others may write"):
        asyncio.run(programs.sbatch().send_file("5", b"s3cret", "/run/sv/keys"))
    (tmp_path / "open").chmod(0o1777)
    asyncio.run(programs.sbatch().send_file("5", b"s3cret", "/run/sv/keys"))
    assert [*(tmp_path / "open").iterdir()] == []


def test_a_name_that_is_taken_is_written_over_in_jobs_of_0_1_alone(
    programs: SlurmPrograms,
) -> None:
    """There the engine before this one has sent its keys to the only name that agents read."""
    programs.put("sbcast", "")
    sbatch = programs.sbatch()
    asyncio.run(sbatch.send_file("5", b"s3cret", "/tmp/superv-0-r.key", replace=True))
    asyncio.run(sbatch.send_file("6", b"s3cret", "/tmp/superv-0-x/key.1"))
    first, second = (programs.folder / "calls").read_text().splitlines()
    assert ("--force" in first.split(), "--force" in second.split()) == (True, False)


def test_send_file_names_the_nodes_that_missed_it(programs: SlurmPrograms) -> None:
    programs.put(
        "sbcast",
        'for n in n3 n4; do echo "sbcast: error: REQUEST_FILE_BCAST($n): No route" >&2; done; '
        "exit 1",
    )
    with pytest.raises(TransientError, match=r"not on n\[3-4\]: No route"):
        asyncio.run(programs.sbatch().send_file("5", b"s3cret", "/run/sv/keys"))
