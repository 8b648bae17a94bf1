"""What superv calls things in the world: Slurm jobs, folders of checkpoints, actions.

Each name is built and read here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# --- allocations --------------------------------------------------------------------------------

_ALLOCATION = re.compile(r"superv-(?P<run>.+)-(?P<run_id>[0-9a-f]{6})-(?P<number>[0-9]{1,9})")


def allocation(run: str, run_id: str, number: int) -> str:
    """The name of a run's Slurm job: its `number`-th request for nodes."""
    return f"{allocations_of(run)}{run_id[:6]}-{number}"


def allocations_of(run: str) -> str:
    """What the names of all jobs of runs called so begin with; those of others may, too."""
    return f"superv-{run}-"


def run_of(job_name: str) -> tuple[str, str] | None:
    """The name of the run that a Slurm job is for and the first letters of its id, or None."""
    match = _ALLOCATION.fullmatch(job_name)
    return (match["run"], match["run_id"]) if match else None


def allocation_number(job_name: str) -> int:
    """Which of its run's requests for nodes a job is; 0 where it is no run's."""
    match = _ALLOCATION.fullmatch(job_name)
    return int(match["number"]) if match else 0


# --- folders of checkpoints: HOME/aNNNN/step-N, HOME/quarantine/aNNNN/step-N ----------------------
# A name beyond these bounds is no checkpoint and no attempt: it comes from nobody who saves, and
# would not fit into the integers of a message.

QUARANTINE = "quarantine"
TRASH = ".superv-trash"  # in an attempt's folder: what is being deleted

_STEP = re.compile(r"step-(0|[1-9][0-9]{0,14})")
_ATTEMPT = re.compile(r"a([0-9]{4}|[1-9][0-9]{4,8})")
GAP = 100_000  # more attempts than this between two names: the higher one is not a run's


def attempt(number: int) -> str:
    """The folder of an attempt: of its checkpoints in shared storage, of its logs on a node."""
    return f"a{number:04d}"


def step_of(name: str) -> int | None:
    """The step that a checkpoint's folder is named for; None for any other name."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def attempt_of(name: str) -> int | None:
    """The number of the attempt that a folder is named for; None for any other name."""
    match = _ATTEMPT.fullmatch(name)
    return int(match[1]) if match else None


def first_free(names: Iterable[str]) -> int:
    """The number after the highest attempt that is there.

    Attempts count up by one. A name that is far above all others was put there by somebody who
    wants us to run out of numbers, and counts for nothing.
    """
    free = 1
    for number in sorted(number for name in names if (number := attempt_of(name)) is not None):
        if number - free >= GAP:
            break
        free = number + 1
    return free


# --- keys of actions ------------------------------------------------------------------------------
# An action that is ordered again has the same key; one that is wanted anew has another.

SCAN_KEY = "look"  # in journals; of the engine's own scan while ranks run: no action of the run


def submit_key(number: int) -> str:
    return f"submit/{number}"


def cancel_key(job_id: str) -> str:
    return f"cancel/{job_id}"


def poll_key(job_id: str, at: float) -> str:
    return f"poll/{job_id}/{at:.3f}"


def send_keys_key(job_id: str, epoch: int) -> str:
    return f"keys/{job_id}/e{epoch}"


def send_again_key(job_id: str, node: str) -> str:
    """How the keys of deliveries begin that a node has asked for; the time follows."""
    return f"keys/{job_id}/{node}/"


def send_keys_again_key(job_id: str, at: float) -> str:
    """Of a job from which no agent has been heard since they were sent."""
    return f"keys/{job_id}/{at:.3f}"


def start_agent_key(node: str, since: float) -> str:
    return f"agent/{node}/{since:.3f}"


def probe_key(target: str, at: float, peer: str) -> str:
    return f"probe/{target}/{at:.3f}/{peer}"


def leave_key(node: str, agent: str) -> str:
    return f"leave/{node}/{agent}"


def prepare_key(attempt: int, node: str) -> str:
    return f"a{attempt}/prepare/{node}"


def start_key(attempt: int, node: str) -> str:
    return f"a{attempt}/start/{node}"


def stop_key(attempt: int, node: str, *, now: bool = False) -> str:
    """A stop without grace is another action than the one with it that it overtakes."""
    return f"a{attempt}/stop{'-now' if now else ''}/{node}"


def stop_again_key(attempt: int, node: str, at: float) -> str:
    """Of a node that has been asked before and has not said that its ranks are gone."""
    return f"a{attempt}/stop-again/{node}/{at:.3f}"


def collect_key(attempt: int, node: str) -> str:
    return f"a{attempt}/collect/{node}"


def keep_logs_key(attempt: int, at: float) -> str:
    return f"a{attempt}/logs/{at:.3f}"


def scan_key(attempt: int, at: float) -> str:
    return f"a{attempt}/scan/{at:.3f}"


def discard_key(path: str) -> str:
    return f"discard/{path}"


def quarantine_key(path: str) -> str:
    return f"quarantine/{path}"
