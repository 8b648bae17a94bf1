"""What superv never does to ranks, attempts and checkpoints. Numbers: docs/invariants.md."""

from __future__ import annotations

from collections.abc import Iterator

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.actions import Action
from supervisor.core.check_status import Status
from supervisor.core.node_life import unchecked
from supervisor.core.ports import ENDS_OF_JOBS
from supervisor.core.step import Breach, Step, keys
from supervisor.core.types import (
    Attempt,
    DeadlineKind,
    Node,
    NodeState,
    Phase,
    Run,
)

# --- 1: ranks whose steps advance -----------------------------------------------------------------


def progress(s: Step) -> Iterator[Breach]:
    attempt = s.before.attempt
    if s.before.phase is not Phase.RUNNING or attempt is None or _may_stop(s, attempt):
        return
    if s.run.phase is not Phase.RUNNING or any(_ends_ranks(a, s.before, attempt) for a in s.new):
        what = f"ranks of attempt {attempt.number} train, and {type(s.event).__name__} ends them"
        yield Breach(what, keys(s.new))


def _ends_ranks(action: Action, run: Run, attempt: Attempt) -> bool:
    if isinstance(action, act.Stop | act.Leave | act.Prepare):
        return action.node in attempt.slots
    return isinstance(action, act.Cancel) and any(
        name in run.pool and run.pool[name].job_id == action.job_id for name in attempt.slots
    )


def _may_stop(s: Step, attempt: Attempt) -> bool:
    """Whether what happened is a reason to end ranks that have made steps."""
    match s.event:
        case ev.StopRequested() | ev.QuarantineRequested() | ev.HangDetected() | ev.RunEnded():
            return True
        case ev.RankExited() | ev.RanksExited() | ev.StartFailed():
            return s.event.attempt == attempt.number
        case ev.Resumed():
            promised = attempt.resume.step if attempt.resume else 0
            return s.event.attempt == attempt.number and s.event.step != promised
        case ev.DeadlineExpired():
            return s.event.kind is DeadlineKind.LAST_RANKS and bool(attempt.exits)
        case ev.AgentLeft():
            return s.event.node in attempt.slots
        case ev.AgentJoined():
            ended = attempt.exits.size(s.event.node)
            whole = s.event.ranks >= s.before.spec.ranks_per_node - ended
            same = s.event.attempt == attempt.number
            return s.event.node in attempt.slots and not (whole and same)
        case ev.AllocationSeen() if s.event.state in ENDS_OF_JOBS:
            return True
        case ev.StepOverdue():
            return bool(_lost(s, attempt))
        case ev.AllocationSeen() | ev.Probed() | ev.HeartbeatLost():
            at = attempt.step_at or 0.0
            lost = _lost(s, attempt)
            return any(
                n.state is not NodeState.SUSPECT or at <= (n.looked_at or n.since) for n in lost
            )
    return False


def _lost(s: Step, attempt: Attempt) -> list[Node]:
    """Nodes with a slot that this step gave up, as they were before it."""
    before, run = s.before.pool, s.run.pool
    return [
        before[name]
        for name in attempt.slots
        if name in run
        and run[name].state is NodeState.LOST
        and before[name].state is not NodeState.LOST
    ]


# --- 3: one lineage -------------------------------------------------------------------------------


def attempts(s: Step) -> Iterator[Breach]:
    old, attempt = s.before.attempt, s.run.attempt
    if (new := s.new_attempt) is not None:
        least = max(s.run.spec.first_attempt, old.number + 1 if old else 1)
        orders = keys(s.orders(act.Prepare, act.Start))
        if new.number < least:
            yield Breach(f"attempt {new.number} begins; it has to be {least} or later", orders)
        home = s.run.spec.checkpoint_dir
        if (new.save_dir is None) is not (home is None):
            yield Breach(f"attempt {new.number} saves into {new.save_dir}", orders)
        elif new.save_dir is not None and _used(s.run, new.save_dir, old):
            yield Breach(f"{new.save_dir} is another attempt's already", orders)
    elif attempt is None and old is not None:
        yield Breach(f"attempt {old.number} is forgotten")
    if s.run.lineage is not s.before.lineage:
        known = {c.path for c in s.before.lineage}
        final = {r.path for r in s.before.rejected if r.final}
        gone = s.before.retired.keys() | final
        newest_of = {c.attempt: c.step for c in s.before.lineage}
        number = old.number if old else 0
        for one in s.run.lineage:
            if one.path in known:
                continue
            ours = one.attempt == number or newest_of.get(one.attempt, -1) > one.step
            if not ours or one.path in gone:
                yield Breach(f"{one.path} of attempt {one.attempt} joins the lineage")
    if s.whole:
        paths = [c.path for c in s.run.lineage]
        if len({*paths}) < len(paths) or {*paths} & s.run.retired.keys():
            yield Breach("a checkpoint is in the lineage twice, or is retired too")


def _used(run: Run, directory: str, old: Attempt | None) -> bool:
    paths = (*(c.path for c in run.lineage), *run.retired, *(r.path for r in run.rejected))
    inside = f"{directory}/"
    return (old is not None and old.save_dir == directory) or any(
        path.startswith(inside) for path in paths
    )


# --- 4: what is resumed ---------------------------------------------------------------------------


def resume(s: Step) -> Iterator[Breach]:
    attempt = s.run.attempt
    if (new := s.new_attempt) is not None:
        newest = s.run.lineage[-1] if s.run.lineage else None
        if new.resume != newest:
            at = f"step {newest.step}" if newest else "no step"
            yield Breach(f"attempt {new.number} does not resume from {at}, the newest verified")
        if newest is None and s.run.spec.checkpoint_dir and s.run.best_step > 0:
            what = f"attempt {new.number} begins at step 0; step {s.run.best_step} was verified"
            yield Breach(what)
    starts = s.orders(act.Start)
    if not starts or attempt is None:
        return
    one = attempt.resume
    promised = (one.path, one.step) if one else (None, None)
    for start in starts:
        assert isinstance(start, act.Start)
        if (start.resume_path, start.resume_step) != promised:
            yield Breach(f"{start.key} resumes from {start.resume_path}", (start.key,))
    if one is None:
        if s.run.spec.checkpoint_dir and (s.run.lineage or s.run.best_step > 0):
            yield Breach("ranks would begin at step 0; a verified step was there", keys(starts))
    elif one.path in s.run.retired or one not in s.run.lineage:
        yield Breach(f"{one.path} is not in the lineage", keys(starts))


# --- 10: starts -----------------------------------------------------------------------------------


def starts(s: Step) -> Iterator[Breach]:
    orders = s.orders(act.Prepare, act.Start)
    if not orders:
        return
    run, attempt = s.run, s.run.attempt
    if attempt is None:
        yield Breach("nodes are ordered to start, and there is no attempt", keys(orders))
        return
    started = {*attempt.started}
    free = {*attempt.prepared} - started
    for order in orders:
        assert isinstance(order, act.AgentCommand)
        if order.attempt != attempt.number:
            yield Breach(f"{order.key}: the attempt is {attempt.number}", (order.key,))
        elif why := _unusable(run, order, first=not started):
            yield Breach(f"{order.key}: {order.node} {why}", (order.key,))
        elif isinstance(order, act.Start) and (why := _wrong(run, attempt, order)):
            yield Breach(f"{order.key}: {why}", (order.key,))
        elif isinstance(order, act.Start) and order.node not in free:
            yield Breach(f"{order.key}: {order.node} is not free of older ranks", (order.key,))
        elif not isinstance(order, act.Start) and run.phase is not Phase.CHECKING:
            yield Breach(f"{order.key}: the run is {run.phase.value}", (order.key,))
    wanted = {a.attempt for a in run.pending.values() if isinstance(a, act.Start)}
    if wanted - {attempt.number}:
        yield Breach("ranks of two attempts are wanted at once", keys(orders))
    slots = [a.slot for a in orders if isinstance(a, act.Start)]
    if len({*slots}) < len(slots) or len({*attempt.slots}) < len(attempt.slots):
        yield Breach("a slot or a node is used twice", keys(orders))


def _unusable(run: Run, order: act.AgentCommand, *, first: bool) -> str:
    """Why the node may not run ranks. One that is only silent may: it concludes nothing."""
    node = run.pool.get(order.node)
    if node is None:
        return "has no agent"
    silent = isinstance(order, act.Start) and node.state is NodeState.SUSPECT
    if node.state is not NodeState.READY and not silent:
        return f"is {node.state.value}"
    if first and node.health is Status.FAIL:
        return "fails its health checks"
    if first and unchecked(run, node):
        return "has not been checked"
    return ""


def _wrong(run: Run, attempt: Attempt, order: act.Start) -> str:
    if run.phase not in (Phase.STARTING, Phase.RUNNING):
        return f"the run is {run.phase.value}"
    if order.nnodes != len(attempt.slots) or not 0 <= order.slot < order.nnodes:
        return f"slot {order.slot} of {order.nnodes}"
    if attempt.slots[order.slot] != order.node:
        return f"slot {order.slot} is {attempt.slots[order.slot]}'s"
    if attempt.master_port is None or order.master_port != attempt.master_port:
        return f"its master port is {order.master_port}, slot 0's is {attempt.master_port}"
    if order.master_addr != run.pool[attempt.slots[0]].address:
        return f"its master is {order.master_addr}, not slot 0's node"
    if order.save_dir != attempt.save_dir:
        return f"it saves into {order.save_dir}, not {attempt.save_dir}"
    return ""


# --- 12: retention --------------------------------------------------------------------------------


def retention(s: Step) -> Iterator[Breach]:
    run, home = s.run, s.run.spec.checkpoint_dir
    for action in s.orders(act.Discard, act.Quarantine):
        assert isinstance(action, act.Discard | act.Quarantine)
        path, key = action.path, action.key
        if home is None or action.home != home or not path.startswith(f"{home}/a"):
            yield Breach(f"{path} is not in a directory of the run's attempts", (key,))
        elif path not in run.retired or any(c.path == path for c in run.lineage):
            yield Breach(f"{path} has not left the lineage", (key,))
        elif isinstance(action, act.Discard) and (why := _needed(s, path)):
            yield Breach(f"{path} {why}", (key,))


def _needed(s: Step, path: str) -> str:
    lineage, attempt = s.run.lineage, s.run.attempt
    if not lineage or s.run.retired[path].step > lineage[-1].step:
        return "is the newest verified checkpoint"
    saved = attempt is None or any(c.attempt == attempt.number for c in lineage)
    if attempt and not saved and attempt.resume and attempt.resume.path == path:
        return f"is what attempt {attempt.number} resumed from, and it has saved nothing yet"
    return ""
