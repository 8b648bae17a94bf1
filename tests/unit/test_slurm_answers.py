"""What Slurm's commands said when they failed, as recorded and as their sources have it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from launchers.slurm_answers import away, is_away, refusal
from supervisor.core.errors import RefusalError

RECORDED = Path(__file__).resolve().parents[1] / "data/slurm/away.txt"

# Whole standard errors. 22.05 and 24.11 in the lab, or slurm_errno.c and the commands' sources.
AWAY = """
squeue: error: slurm_load_jobs error: Unable to contact slurm controller (connect failure)
sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)
sbatch: error: Batch job submission failed: Socket timed out on send/recv operation
scancel: error: Kill job error on job id 7: Socket timed out on send/recv operation
sinfo: error: slurm_load_partitions: Zero Bytes were transmitted or received
slurm_load_node error: Slurm backup controller in standby mode
scontrol: fatal: Could not establish a configuration source
squeue: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host
squeue: error: fetch_config: DNS SRV lookup failed
sinfo: error: s_p_parse_file: cannot stat file /etc/slurm/slurm.conf: No such file or directory
sbatch: fatal: Unable to process configuration file
squeue: error: Unable to resolve "ctl": Unknown host
squeue: error: get_addr_info: getaddrinfo() failed: Temporary failure in name resolution
squeue: error: If munged is up, restart with --num-threads=10
squeue: error: Munge encode failed: Failed to access "/run/munge/munge.socket.2": No such file
sbatch: error: Batch job submission failed: Invalid authentication credential
sbatch: error: Batch job submission failed: Protocol authentication error
sacct: error: Sending PersistInit msg: Connection refused
sacct: error: Problem talking to the database: Connection refused
sacct: error: slurm_persist_conn_open: failed to send persistent connection init message to db:6819
sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying
sbatch: error: Batch job submission failed: Resource temporarily unavailable
squeue: error: slurm_load_jobs error: Incompatible versions of client and server code
squeue: error: cannot find auth plugin for auth/munge
squeue: error while loading shared libraries: libslurmfull.so: cannot open shared object file
sbatch: error: Batch job submission failed: RPC rate limit exceeded, please retry
scontrol: error: slurm_receive_msg: Connection reset by peer
squeue: error: /etc/slurm/slurm.conf: Stale file handle
""".strip().splitlines()

REFUSED = """
sbatch: error: Batch job submission failed: Invalid partition name specified
sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified
sbatch: error: Batch job submission failed: Invalid qos specification
sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)
sbatch: error: Batch job submission failed: Requested node configuration is not available
sbatch: error: Batch job submission failed: Node count specification invalid
sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)
sbatch: error: Batch job submission failed: Invalid generic resource (gres) specification
sbatch: error: Batch job submission failed: Invalid feature specification
sbatch: error: Batch job submission failed: Requested reservation is invalid
sbatch: error: Batch job submission failed: Access denied to requested reservation
sbatch: error: Batch job submission failed: Job dependency problem
sbatch: error: Batch job submission failed: Invalid license specification
sbatch: error: Batch job submission failed: User's group not permitted to use this partition
sbatch: error: Memory specification can not be satisfied
sbatch: error: Invalid --time specification
sbatch: unrecognized option '--bogus=2'
""".strip().splitlines()  # noqa: E501

UNHEARD = """
sbatch: error: Batch job submission failed: Unspecified error
sbatch: error: Batch job submission failed: Job credential expired, or so
sbatch: error: Batch job submission failed: Unknown error 4711
sbatch: error: cli_filter plugin terminated with error
""".strip().splitlines()


@pytest.mark.parametrize("said", AWAY)
def test_slurm_is_away(said: str) -> None:
    assert is_away(said)
    assert is_away(f"a line before\n{said}\n")


# What the causes of tests/data/slurm/away.txt are called.
CAUSES = {
    "conf": "there is no slurm.conf here",
    "unusable": "slurm.conf can't be used",
    "munge": "munge (or sackd)",
    "name": "the name of slurmctld's machine",
    "away": "Slurm does not answer",
}


def recorded() -> Iterator[tuple[str, str, str]]:
    """(cause, what was seen on which releases, standard error)."""
    for line in RECORDED.read_text().splitlines():
        if not line.startswith("#"):
            cause, releases, commands, said = line.split(" | ")
            yield cause, f"{releases}: {commands}", said.replace(" // ", "\n")


@pytest.mark.parametrize(("cause", "seen", "said"), [*recorded()])
def test_why_a_client_can_not_reach_slurmctld(cause: str, seen: str, said: str) -> None:
    found = away(said.replace("CMD", seen.split(": ")[1].split()[0]))
    assert found is not None and found[0].what.startswith(CAUSES[cause]), (seen, found)
    assert found[1] in said.replace("CMD", seen.split(": ")[1].split()[0])


def test_each_release_and_command_was_tried_for_each_cause() -> None:
    tried = {
        (cause, release, command.split()[0])
        for cause, seen, _ in recorded()
        for release in seen.split(": ")[0].split()
        for command in seen.split(": ")[1].split(", ")
    }
    commands = ("squeue", "sinfo", "scontrol", "scancel", "sbatch", "srun", "sbcast")
    for cause in CAUSES:
        for release in ("22.05", "24.11", "26.05"):
            missing = [c for c in commands if (cause, release, c) not in tried]
            assert not missing, (cause, release)


@pytest.mark.parametrize("said", REFUSED)
def test_a_refusal_that_is_known_is_no_absence(said: str) -> None:
    assert not is_away(said)
    assert isinstance(refusal(said, []), RefusalError)


def test_what_a_site_advises_beside_a_refusal_decides_nothing() -> None:
    site = "sbatch: error: Please name an account for the database of credentials and try again"
    said = f"{site}\nsbatch: error: Batch job submission failed: Invalid account\n"
    assert not is_away(said) and isinstance(refusal(said, []), RefusalError)


def test_an_error_that_nobody_has_heard_of_is_not_taken_for_a_lasting_refusal() -> None:
    for said in UNHEARD:
        assert is_away(said) or type(refusal(said, [])).__name__ == "UserError", said


@pytest.mark.parametrize(
    ("message", "argv", "says"),
    [
        (
            "sbatch: error: Batch job submission failed: Invalid node name specified",
            ["sbatch", "--nodelist=n77", "--exclude=n1"],
            "slurm: nodelist or exclude: Slurm refused the job: Invalid node name specified"
            " (given: --nodelist=n77 --exclude=n1)",
        ),
        (
            "sbatch: error: Invalid --time specification",
            ["sbatch", "--time=bogus"],
            "slurm: time: Slurm refused the job: Invalid --time specification"
            " (given: --time=bogus)",
        ),
        (
            "sbatch: error: Invalid generic resource (gres) specification",
            ["sbatch", "--gres=foo:2"],
            "slurm: gres: ",
        ),
        ("Batch job submission failed: Invalid feature specification", [], "slurm: constraint: "),
        ("Batch job submission failed: Invalid qos specification", [], "slurm: qos: "),
        (
            "sbatch: unrecognized option '--bogus=2'\nTry \"sbatch --help\" for more information",
            [],
            "slurm: Slurm refused the job: unrecognized option '--bogus=2'; fix it",
        ),
    ],
)
def test_refusals_name_the_option(message: str, argv: list[str], says: str) -> None:
    assert str(refusal(message, argv)).startswith(says)
