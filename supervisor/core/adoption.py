"""A run whose journal was lost, as its agents, its Slurm jobs and its checkpoints know it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from supervisor.core import events as ev
from supervisor.core import names
from supervisor.core.nodeset import natural_sort_key
from supervisor.core.persistent import Names, PersistentSet
from supervisor.core.transition import Transition, handles
from supervisor.core.types import (
    Allocation,
    AllocationState,
    Attempt,
    Deadline,
    DeadlineKind,
    Node,
    Phase,
    Pool,
    Run,
)


def adopted(event: ev.Adopted) -> Run:
    """The run to go on with.

    Ranks that are there are waited for as if they had just been started: their next step shows
    that they train. Of a node whose agent did not answer, or holds fewer ranks than it should, the
    failure detector hears nothing, or its agent registers and tells.
    """
    run = Run(
        spec=event.spec,
        since=event.at,
        endpoint=event.endpoint,
        allocations={job.job_id: allocation(job) for job in event.jobs},
        allocations_requested=max(names.allocation_number(job.job_name) for job in event.jobs),
        excluded={x.node: x for x in event.excluded},
        operator_excluded=dict(event.operator_excluded),
        lineage=event.lineage,
        best_step=event.lineage[-1].step if event.lineage else 0,
    )
    by = f"adopted by {event.who}"
    if event.attempt is not None:
        number, limit = event.attempt, event.spec.policy.first_step_timeout_s
        return replace(
            _with_ranks(run, event, number),
            phase=Phase.STARTING,
            reason=f"{by}: attempt {number}, whose next step is awaited",
            deadline=Deadline(at=event.at + limit, kind=DeadlineKind.FIRST_STEP),
        )
    if not any(job.nodes for job in event.jobs):
        return replace(run, reason=f"{by}: waiting for nodes")
    limit = event.spec.policy.registration_timeout_s
    return replace(
        run,
        phase=Phase.GATHERING,
        reason=f"{by}: no ranks are left; the agents are coming",
        deadline=Deadline(at=event.at + limit, kind=DeadlineKind.REGISTRATION),
    )


def _with_ranks(run: Run, event: ev.Adopted, number: int) -> Run:
    home = run.spec.checkpoint_dir
    attempt = Attempt(
        number=number,
        slots=Names(event.slots),
        resume=event.resume,
        save_dir=f"{home}/{names.attempt(number)}" if home else None,
        started=PersistentSet(event.slots),
        started_at=event.at,
    )
    jobs = {name: job.job_id for job in event.jobs for name in job.nodes}
    silent = {
        name: Node(
            name=name,
            job_id=jobs.get(name, event.jobs[-1].job_id),
            listed=name in jobs,  # who is in no job of the run any more is gone for Slurm
            address=name,  # peers that probe find the host, and no agent on it
            port=0,
            agent="",
            since=event.at,
        )
        for name in event.slots
    }
    answered = {
        a.node: Node(
            name=a.node,
            job_id=a.job_id,
            address=a.address,
            port=a.port,
            agent=a.agent,
            key=a.key,
            since=event.at,
        )
        for a in event.agents
    }
    pool = Pool((silent | answered).items())
    return replace(run, attempt=attempt, slots=Names(event.slots), pool=pool)


def allocation(job: ev.AdoptedJob) -> Allocation:
    return Allocation(
        job_id=job.job_id,
        job_name=job.job_name,
        state=AllocationState.GRANTED if job.nodes else AllocationState.REQUESTED,
        raw=job.raw,
        nodes=Names(job.nodes),
        reason=job.reason,
        folder=job.folder,
    )


@dataclass(frozen=True, slots=True)
class SlotsFound:
    """Which node has which slot, as far as it can be told."""

    nodes: Mapping[int, str]  # by slot
    open: tuple[int, ...]  # slots that any of more silent nodes than these may have
    silent: tuple[str, ...]  # these nodes


def places(
    count: int,
    told: Mapping[int, str],
    before: Sequence[str],
    there: Iterable[str],
    heard: Set[str],
) -> SlotsFound:
    """The slots of ranks that are there: `told` by agents, else as the journal had them `before`.

    `there` are the nodes of the run's jobs, `heard` those that answered. Of slots that nobody tells
    of, silent nodes have those; then come nodes that answered, and hold no ranks; a node that has
    left the jobs comes last.
    """
    known, present = dict(told), set(there)
    gone: dict[int, str] = {}  # whose node has left
    for slot, node in enumerate(before):
        if slot in known or node in known.values():
            continue
        (known if node in present else gone)[slot] = node
    missing = [slot for slot in range(count) if slot not in known and slot not in gone]
    rest = sorted(present.difference(known.values()), key=natural_sort_key)
    silent = [node for node in rest if node not in heard]
    if len(silent) > len(missing) > 0:
        return SlotsFound(known | gone, tuple(missing), tuple(silent))
    others = [node for node in rest if node in heard]
    known |= zip([*missing, *sorted(gone)], [*(silent if missing else ()), *others], strict=False)
    return SlotsFound({**gone, **known}, (), ())


@handles(ev.Adopted)
def began_adopted(t: Transition, event: ev.Adopted) -> None:
    """All of it is in the run that the journal begins with; see `adopted`."""
