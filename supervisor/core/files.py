"""superv's own files on nodes: what somebody removed there, and who makes it again."""

from __future__ import annotations

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core import names
from supervisor.core.transition import Transition, handles
from supervisor.core.types import AllocationState


@handles(ev.FilesMissing)
def files_missing(t: Transition, event: ev.FilesMissing) -> None:
    """Deliver again what its agent can't make, unless that is on its way to the job's nodes."""
    node = t.run.pool.get(event.node)
    job = t.run.allocations.get(node.job_id) if node is not None else None
    if t.run.ended or job is None or job.state is not AllocationState.GRANTED:
        return
    if any(isinstance(a, act.SendKeys) and a.job_id == job.job_id for a in t.run.pending.values()):
        return
    t.emit(
        act.SendKeys(
            key=f"{names.send_again_key(job.job_id, event.node)}{t.at:.3f}", job_id=job.job_id
        )
    )


@handles(ev.FilesRestored)
def files_restored(t: Transition, event: ev.FilesRestored) -> None:
    """It has them: whether the job's other nodes got them once more does not matter."""
    node = t.run.pool.get(event.node)
    if node is not None:
        again = names.send_again_key(node.job_id, event.node)
        t.drop(lambda a: a.key.startswith(again))
