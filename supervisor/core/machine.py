"""`step(run, event) -> (run, actions)`: every decision about a Run, as one pure function.

Time arrives in events. Results of actions come back as events. The engine, a rebuild from the
journal and every test go through this function and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.actions import Action
from supervisor.core.diagnose import diagnose, remedy
from supervisor.core.types import (
    ENDS,
    Allocation,
    Attempt,
    Checkpoint,
    Deadline,
    Evidence,
    Exclusion,
    Incident,
    Node,
    NodeState,
    Phase,
    Run,
)

PREPARE_S = 60.0  # an agent clears its node of older ranks well within this
STOP_SLACK_S = 10.0  # over the grace period: SIGKILL, reaping, the answer's way back
RELEASE_S = 15.0  # agents told to leave have ended their job by then; else it is cancelled
ENGINE_SLACK_S = 30.0  # after an engine's start agents get this long before a deadline counts
PROBES = 3  # peers that are asked whether they reach a silent node


class Turn:
    """The run as it changes within one step, and the actions that come of it."""

    def __init__(self, run: Run, at: float) -> None:
        self.run = run
        self.at = at
        self.actions: list[Action] = []

    def set(self, **changes: Any) -> None:
        self.run = replace(self.run, **changes)

    def do(self, action: Action) -> None:
        self.actions.append(action)
        self.set(pending={**self.run.pending, action.key: action})

    def drop(self, unwanted: Callable[[Action], bool]) -> None:
        """Forget actions whose result no longer matters."""
        self.set(pending={k: a for k, a in self.run.pending.items() if not unwanted(a)})

    def phase(self, phase: Phase, reason: str, deadline: tuple[float, str] | None = None) -> None:
        """Enter a phase; the deadline is seconds from now and what happens then."""
        self.set(
            phase=phase,
            since=self.at,
            reason=reason,
            deadline=None
            if deadline is None
            else Deadline(at=self.at + deadline[0], what=deadline[1]),
        )

    def node(self, name: str, **changes: Any) -> None:
        node = replace(self.run.pool[name], **changes)
        self.set(pool={**self.run.pool, name: node})

    def attempt(self, **changes: Any) -> None:
        assert self.run.attempt is not None
        self.set(attempt=replace(self.run.attempt, **changes))

    def incident(self, **changes: Any) -> None:
        """Change the newest incident."""
        *before, last = self.run.incidents
        self.set(incidents=(*before, replace(last, **changes)))


def step(run: Run | None, event: ev.Event) -> tuple[Run, tuple[Action, ...]]:
    """Fold one event into the run; the first event of a run is Launched."""
    if run is None:
        assert isinstance(event, ev.Launched), "a journal begins with Launched"
        run = Run(spec=event.spec, lineage=(event.seed,) if event.seed else ())
    turn = Turn(run, event.at)
    key = getattr(event, "key", None)
    if key is not None and not isinstance(event, ev.Waiting):
        turn.set(pending={k: a for k, a in turn.run.pending.items() if k != key})
    _ON[type(event)](turn, event)
    return turn.run, tuple(turn.actions)


# --- nodes: allocations and agents ------------------------------------------------------------


def _launched(t: Turn, event: ev.Launched) -> None:
    if event.seed:
        t.set(best_step=event.seed.step)
    _ask(t)


def _ask(t: Turn) -> None:
    """Ask Slurm for the base allocation."""
    spec, number = t.run.spec, t.run.asked + 1
    t.set(asked=number, slots=(), pool={})
    nodes = spec.nodes + spec.spares
    t.phase(Phase.PENDING, f"waiting for {nodes} nodes")
    t.do(
        do.Submit(
            key=f"submit/{number}",
            job_name=f"superv-{spec.name}-{spec.run_id[:6]}-{number}",
            nodes=nodes,
            exclude=tuple(sorted(t.run.excluded)),
        )
    )


def _engine_started(t: Turn, event: ev.EngineStarted) -> None:
    moved = bool(t.run.endpoint) and t.run.endpoint != event.endpoint
    t.set(epoch=event.epoch, endpoint=event.endpoint)
    if t.run.deadline is not None:
        later = max(t.run.deadline.at, t.at + ENGINE_SLACK_S)
        t.set(deadline=replace(t.run.deadline, at=later))
    t.actions.extend(t.run.pending.values())
    if moved:
        for alloc in t.run.allocations.values():
            if alloc.state == "granted":
                t.do(do.SendKeys(key=f"keys/{alloc.job_id}/e{event.epoch}", job_id=alloc.job_id))


def _allocation(t: Turn, job_id: str, **changes: Any) -> None:
    alloc = replace(t.run.allocations[job_id], **changes)
    t.set(allocations={**t.run.allocations, job_id: alloc})


def _submitted(t: Turn, event: ev.Submitted) -> None:
    alloc = Allocation(job_id=event.job_id, job_name=event.job_name, state="asked")
    t.set(allocations={**t.run.allocations, event.job_id: alloc})
    if t.run.ended:
        _cancel(t, event.job_id, "the run ended before its job was granted")


def _submit_refused(t: Turn, event: ev.SubmitRefused) -> None:
    if not t.run.ended:
        _end(t, Phase.HELD, event.why)


def _cancel(t: Turn, job_id: str, why: str) -> None:
    _allocation(t, job_id, cancelled=True)
    t.do(do.Cancel(key=f"cancel/{job_id}", job_id=job_id, why=why))


def _allocation_seen(t: Turn, event: ev.AllocationSeen) -> None:
    before = t.run.allocations.get(event.job_id)
    if before is None or before.state == "ended":
        return
    _allocation(t, event.job_id, raw=event.raw, reason=event.reason)
    if event.state == "running":
        _allocation(t, event.job_id, state="granted", nodes=event.nodes)
        if before.state == "asked":
            t.do(do.SendKeys(key=f"keys/{event.job_id}/e{t.run.epoch}", job_id=event.job_id))
            if t.run.phase is Phase.PENDING:
                reason = f"{len(event.nodes)} nodes granted; their agents are coming"
                t.phase(Phase.GATHERING, reason, (t.run.spec.policy.gather_limit_s, "gather"))
        for name in event.down:
            node = t.run.pool.get(name)
            if node is not None and node.state is NodeState.SUSPECT:
                _confirm_lost(t, name, "slurm", f"Slurm reports {name} as down")
    elif event.state in ("cancelled", "ended"):
        _allocation_ended(t, event, ours=before.cancelled)


def _allocation_ended(t: Turn, event: ev.AllocationSeen, *, ours: bool) -> None:
    _allocation(t, event.job_id, state="ended")
    t.drop(lambda a: getattr(a, "job_id", None) == event.job_id)
    for node in t.run.pool.values():
        if node.job_id == event.job_id and node.state is not NodeState.LOST:
            t.node(node.name, state=NodeState.LEFT, since=t.at, reason=f"job is {event.raw}")
    t.drop(lambda a: isinstance(a, do.Order))
    if t.run.ended:
        return
    if event.state == "cancelled" and not ours:
        _end(t, Phase.STOPPED, f"job {event.job_id} was cancelled by a person ({event.raw})")
    elif t.run.goal is not None:
        _end(t, t.run.goal, t.run.reason)
    elif not t.run.live_jobs:
        _lost_all(t, event)


def _lost_all(t: Turn, event: ev.AllocationSeen) -> None:
    seen = Evidence(
        node="",
        at=t.at,
        source="slurm",
        text=f"job {event.job_id} ended: {event.raw} {event.reason}".strip(),
    )
    if t.run.phase in (Phase.STOPPING, Phase.TRIAGE):
        t.incident(evidence=(*t.run.incidents[-1].evidence, seen))
        if t.run.phase is Phase.STOPPING:
            _triage(t)
    else:
        _incident(t, "allocation-ended", seen)


def _keys_sent(t: Turn, event: ev.KeysSent) -> None:
    """The agents of the job can register now; nothing to decide."""


def _agent_joined(t: Turn, event: ev.AgentJoined) -> None:
    node = Node(
        name=event.node,
        job_id=event.job_id,
        address=event.address,
        port=event.port,
        agent=event.agent,
        since=t.at,
        state=NodeState.UNFIT if event.problems else NodeState.READY,
        reason="; ".join(event.problems),
    )
    t.set(pool={**t.run.pool, event.node: node})
    if t.run.ended:
        _leave(t, event.node)
        return
    attempt = t.run.attempt
    if (
        t.run.phase in (Phase.STARTING, Phase.RUNNING)
        and attempt is not None
        and event.node in attempt.started
    ):
        seen_ends = sum(1 for e in attempt.exits if e.node == event.node)
        expected = t.run.spec.ranks_per_node - seen_ends
        if event.attempt != attempt.number or event.ranks < expected:
            text = f"the agent on {event.node} came back without the ranks of attempt "
            seen = Evidence(
                node=event.node, at=t.at, source="agent", text=f"{text}{attempt.number}"
            )
            _incident(t, "ranks-lost", seen)
    elif t.run.phase is Phase.GATHERING:
        _gathered(t)


def _agent_left(t: Turn, event: ev.AgentLeft) -> None:
    node = t.run.pool.get(event.node)
    if node is None or node.agent != event.agent:
        return
    t.node(event.node, state=NodeState.LEFT, since=t.at, reason=event.reason)
    t.drop(lambda a: isinstance(a, do.Order) and a.node == event.node)
    if t.run.ended:
        return
    t.do(do.Poll(key=f"poll/{node.job_id}/{t.at:.3f}", job_id=node.job_id))
    if t.run.phase is Phase.STOPPING:
        _gone(t, event.node)
    elif t.run.phase is Phase.CHECKING:
        _check(t)
    elif _has_slot(t.run, event.node):
        text = f"the agent on {event.node} left: {event.reason}"
        _incident(t, "agent-left", Evidence(node=event.node, at=t.at, source="agent", text=text))


def _has_slot(run: Run, node: str) -> bool:
    return (
        run.phase in (Phase.STARTING, Phase.RUNNING)
        and run.attempt is not None
        and node in run.attempt.slots
    )


# --- silence ----------------------------------------------------------------------------------


def _node_silent(t: Turn, event: ev.NodeSilent) -> None:
    node = t.run.pool.get(event.node)
    if node is None or node.state is not NodeState.READY or t.run.ended:
        return
    t.node(
        event.node,
        state=NodeState.SUSPECT,
        since=t.at,
        reason=f"no beat since {t.at - event.last_heard:.1f} s",
        unreachable=(),
        reachable=(),
    )
    t.do(do.Poll(key=f"poll/{node.job_id}/{t.at:.3f}", job_id=node.job_id))
    for peer in _peers(t.run, event.node):
        t.do(
            do.Probe(
                key=f"probe/{event.node}/{t.at:.3f}/{peer}",
                node=peer,
                attempt=t.run.attempt.number if t.run.attempt else 0,
                target=event.node,
                address=node.address,
                port=node.port,
            )
        )


def _peers(run: Run, name: str) -> list[str]:
    return [n.name for n in run.pool.values() if n.state is NodeState.READY and n.name != name][
        :PROBES
    ]


def _node_heard(t: Turn, event: ev.NodeHeard) -> None:
    node = t.run.pool.get(event.node)
    if node is not None and node.state is NodeState.SUSPECT:
        t.node(event.node, state=NodeState.READY, since=t.at, reason="")
        t.drop(lambda a: isinstance(a, do.Probe) and a.target == event.node)
        if t.run.phase is Phase.GATHERING:
            _gathered(t)


def _probed(t: Turn, event: ev.Probed) -> None:
    node = t.run.pool.get(event.target)
    if node is None or node.state is not NodeState.SUSPECT or t.run.ended:
        return
    if event.outcome == "unreachable":
        t.node(event.target, unreachable=(*node.unreachable, event.node))
    else:
        t.node(event.target, reachable=(*node.reachable, event.node))
        if event.outcome == "refused":  # the host answers, its agent does not
            t.do(
                do.StartAgent(
                    key=f"agent/{event.target}/{node.since:.3f}",
                    job_id=node.job_id,
                    node=event.target,
                )
            )
    node = t.run.pool[event.target]
    asked = any(isinstance(a, do.Probe) and a.target == node.name for a in t.run.pending.values())
    if not asked and node.unreachable and not node.reachable:
        peers = ", ".join(node.unreachable)
        _confirm_lost(t, node.name, "peers", f"{peers} can't reach {node.name} either")


def _step_overdue(t: Turn, event: ev.StepOverdue) -> None:
    for node in t.run.pool.values():
        if node.state is NodeState.SUSPECT and _has_slot(t.run, node.name):
            text = (
                f"no step since step {event.last_step}, {t.at - event.last_at:.1f} s ago; "
                f"the job's own rhythm allows {event.limit_s:.1f} s"
            )
            _confirm_lost(t, node.name, "overdue step", text)


def _confirm_lost(t: Turn, name: str, source: str, text: str) -> None:
    """A second witness said that a silent node is lost."""
    node = t.run.pool[name]
    suspected = node.since
    silence = Evidence(node=name, at=suspected, source="silence", text=f"{name}: {node.reason}")
    witness = Evidence(node=name, at=t.at, source=source, text=text)
    t.node(name, state=NodeState.LOST, since=t.at, reason=text)
    t.drop(lambda a: isinstance(a, do.Order) and (a.node == name or _probes(a, name)))
    if t.run.ended:
        return
    if _has_slot(t.run, name):
        _incident(t, "node-lost", silence, witness, suspected_at=suspected)
    elif t.run.phase is Phase.STOPPING:
        t.incident(evidence=(*t.run.incidents[-1].evidence, silence, witness))
        _gone(t, name)
    elif t.run.phase is Phase.CHECKING:
        _check(t)


def _probes(action: Action, name: str) -> bool:
    return isinstance(action, do.Probe) and action.target == name


def _stalled(t: Turn, event: ev.Stalled) -> None:
    if t.run.phase is Phase.RUNNING:
        text = f"no step for {event.limit_s:.0f} s after step {event.last_step}"
        _incident(t, "hang", Evidence(node="", at=t.at, source="progress", text=text))


# --- starting ---------------------------------------------------------------------------------


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts n2 before n10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _usable(run: Run) -> list[str]:
    ready = (n.name for n in run.pool.values() if n.state is NodeState.READY)
    return sorted((name for name in ready if name not in run.excluded), key=natural)


def _gathered(t: Turn) -> None:
    """Go on when everybody is here, or after a while when enough for every slot are."""
    spec = t.run.spec
    if len(_usable(t.run)) < spec.nodes:
        return
    granted = {n for a in t.run.allocations.values() if a.state == "granted" for n in a.nodes}
    here = {n.name for n in t.run.pool.values()}
    if granted <= here or len(_usable(t.run)) >= spec.nodes + spec.spares:
        _check(t)
    elif t.run.deadline is None or t.run.deadline.what != "spares":
        t.phase(Phase.GATHERING, "waiting for the spares", (spec.policy.gather_s, "spares"))


def _check(t: Turn) -> None:
    """Put nodes into the slots and let every one of them confirm that it is free."""
    t.drop(lambda a: isinstance(a, do.Order) and not isinstance(a, do.Probe))
    if not t.run.live_jobs:
        _ask(t)
        return
    usable = _usable(t.run)
    old = t.run.slots or ("",) * t.run.spec.nodes
    free = [name for name in usable if name not in old]
    slots = tuple(name if name in usable else (free.pop(0) if free else "") for name in old)
    t.set(slots=slots)
    if "" in slots:
        missing = ", ".join(str(i) for i, name in enumerate(slots) if not name)
        reason = f"no node for slot {missing}: no spare is left"
        t.phase(Phase.GATHERING, reason, (t.run.spec.policy.gather_limit_s, "gather"))
        return
    number = t.run.attempt.number + 1 if t.run.attempt else 1
    home = t.run.spec.checkpoint_dir
    t.set(
        attempt=Attempt(
            number=number,
            slots=slots,
            resume=t.run.lineage[-1] if t.run.lineage else None,
            save_dir=f"{home}/a{number:04d}" if home else None,
        )
    )
    t.phase(Phase.CHECKING, f"attempt {number}: preparing the nodes", (PREPARE_S, "prepare"))
    for node in slots:
        t.do(do.Prepare(key=f"a{number}/prepare/{node}", node=node, attempt=number))


def _prepared(t: Turn, event: ev.Prepared) -> None:
    attempt = t.run.attempt
    if attempt is None or event.attempt != attempt.number or t.run.phase is not Phase.CHECKING:
        return
    if event.problems:
        reason = "; ".join(event.problems)
        t.node(event.node, state=NodeState.UNFIT, since=t.at, reason=reason)
        _check(t)
        return
    t.attempt(prepared=(*attempt.prepared, event.node))
    if event.node == attempt.slots[0]:
        t.attempt(master_port=event.port)
    attempt = t.run.attempt
    assert attempt is not None
    if set(attempt.prepared) >= set(attempt.slots):
        _start(t, attempt)


def _start(t: Turn, attempt: Attempt) -> None:
    assert attempt.master_port is not None
    resume = attempt.resume
    origin = f"step {resume.step}" if resume else "the beginning"
    limit = t.run.spec.policy.start_limit_s
    t.phase(Phase.STARTING, f"attempt {attempt.number} from {origin}", (limit, "start"))
    t.attempt(started_at=t.at)
    for slot, node in enumerate(attempt.slots):
        t.do(
            do.Start(
                key=f"a{attempt.number}/start/{node}",
                node=node,
                attempt=attempt.number,
                slot=slot,
                nnodes=len(attempt.slots),
                master_addr=t.run.pool[attempt.slots[0]].address,
                master_port=attempt.master_port,
                save_dir=attempt.save_dir,
                resume_path=resume.path if resume else None,
                resume_step=resume.step if resume else None,
            )
        )


def _ranks_started(t: Turn, event: ev.RanksStarted) -> None:
    attempt = t.run.attempt
    if attempt is None or event.attempt != attempt.number or event.node in attempt.started:
        return
    t.attempt(started=(*attempt.started, event.node))
    everywhere = len(attempt.started) + 1 == len(attempt.slots)
    if everywhere and t.run.incidents and t.run.incidents[-1].relaunched_at is None:
        t.incident(relaunched_at=t.at)


def _start_failed(t: Turn, event: ev.StartFailed) -> None:
    attempt = t.run.attempt
    if attempt is None or event.attempt != attempt.number:
        return
    seen = Evidence(node=event.node, at=t.at, source="start", text=f"{event.node}: {event.why}")
    if t.run.phase is Phase.STARTING:
        _incident(t, "start-failed", seen)
    elif t.run.phase is Phase.STOPPING and t.run.goal is None:
        t.incident(evidence=(*t.run.incidents[-1].evidence, seen))


# --- while ranks run --------------------------------------------------------------------------


def _resumed(t: Turn, event: ev.Resumed) -> None:
    attempt = t.run.attempt
    if attempt is None or event.attempt != attempt.number:
        return
    t.attempt(resumed_step=event.step)
    promised = attempt.resume.step if attempt.resume else 0
    if event.step != promised and t.run.phase in (Phase.STARTING, Phase.RUNNING):
        _wrong_step(t, f"{event.node} resumed at step {event.step}, promised was step {promised}")


def _wrong_step(t: Turn, text: str) -> None:
    seen = Evidence(node="", at=t.at, source="rank log", text=text)
    t.set(goal=Phase.HELD)
    _incident(t, "wrong-step", seen)
    t.set(reason=f"attempt {t.run.attempt.number if t.run.attempt else 0}: {text}")


def _progress(t: Turn, event: ev.Progress) -> None:
    attempt = t.run.attempt
    if (
        attempt is None
        or event.attempt != attempt.number
        or t.run.phase not in (Phase.STARTING, Phase.RUNNING)
        or (attempt.step is not None and event.step <= attempt.step)
    ):
        return
    promised = attempt.resume.step if attempt.resume else 0
    if attempt.step is None and event.step <= promised:
        _wrong_step(t, f"the first step was {event.step}, promised was one after {promised}")
        return
    t.attempt(step=event.step, step_at=t.at)
    if event.loss is not None:
        t.attempt(loss=event.loss)
    if not t.run.spec.checkpoint_dir and event.step > t.run.best_step:
        t.set(best_step=event.step, fruitless={})
    if t.run.phase is Phase.STARTING:
        t.attempt(first_step_at=t.at)
        t.phase(Phase.RUNNING, f"attempt {attempt.number}")
        if t.run.incidents and t.run.incidents[-1].first_step_at is None:
            t.incident(first_step_at=t.at)


def _rank_exited(t: Turn, event: ev.RankExited) -> None:
    attempt = t.run.attempt
    if (
        attempt is None
        or event.attempt != attempt.number
        or any(e.rank == event.exit.rank for e in attempt.exits)
    ):
        return
    t.attempt(exits=(*attempt.exits, event.exit))
    if t.run.phase not in (Phase.STARTING, Phase.RUNNING):
        return
    if not event.exit.clean:
        seen = Evidence(
            node=event.exit.node, at=event.exit.at, source="agent", text=event.exit.text()
        )
        _incident(t, "rank-exit", seen, *_tail(event), fault_at=event.exit.at)
    elif len(attempt.exits) + 1 == len(attempt.slots) * t.run.spec.ranks_per_node:
        t.set(goal=Phase.DONE, reason=f"all ranks ended well at step {attempt.step}")
        _triage(t)


def _tail(event: ev.RankExited) -> list[Evidence]:
    last = event.exit.tail[-1:]
    return [
        Evidence(node=event.exit.node, at=event.exit.at, source="rank log", text=line)
        for line in last
    ]


# --- recovering -------------------------------------------------------------------------------


def _incident(
    t: Turn,
    cause: str,
    *evidence: Evidence,
    suspected_at: float | None = None,
    fault_at: float | None = None,
) -> None:
    """The attempt ended badly: record why, and stop what is left of it."""
    attempt = t.run.attempt
    last_step = attempt.step if attempt and attempt.step is not None else None
    if last_step is None and attempt and attempt.resume:
        last_step = attempt.resume.step
    t.set(
        incidents=(
            *t.run.incidents,
            Incident(
                attempt=attempt.number if attempt else 0,
                cause=cause,
                evidence=evidence,
                fault_at=fault_at,
                suspected_at=suspected_at if suspected_at is not None else t.at,
                confirmed_at=t.at,
                step=last_step,
            ),
        )
    )
    _stop(t, f"{cause}: {evidence[-1].text if evidence else ''}", t.run.spec.policy.stop_grace_s)


def _answering(run: Run, attempt: Attempt) -> list[str]:
    """Nodes of the attempt that can be expected to confirm that their ranks are gone."""
    silent = (NodeState.LOST, NodeState.LEFT)
    return [n for n in attempt.slots if n in run.pool and run.pool[n].state not in silent]


def _stop(t: Turn, reason: str, grace_s: float) -> None:
    attempt = t.run.attempt
    t.drop(lambda a: isinstance(a, do.Order) and not isinstance(a, do.Probe))
    t.phase(Phase.STOPPING, reason, (grace_s + STOP_SLACK_S, "stop"))
    if attempt is None:
        _triage(t)
        return
    t.attempt(gone=())
    for node in _answering(t.run, attempt):
        if t.run.goal is None:
            key = f"a{attempt.number}/collect/{node}"
            t.do(do.Collect(key=key, node=node, attempt=attempt.number))
        key = f"a{attempt.number}/stop{'-now' if grace_s == 0 else ''}/{node}"
        t.do(do.Stop(key=key, node=node, attempt=attempt.number, grace_s=grace_s))
    if not _answering(t.run, attempt):
        _all_gone(t)


def _ranks_stopped(t: Turn, event: ev.RanksStopped) -> None:
    attempt = t.run.attempt
    if attempt is None or event.attempt != attempt.number or t.run.phase is not Phase.STOPPING:
        return
    if event.stuck:
        pids = ", ".join(str(pid) for pid in event.stuck)
        reason = f"processes {pids} of an older attempt can't be killed"
        t.node(event.node, state=NodeState.UNFIT, since=t.at, reason=reason)
    _gone(t, event.node)


def _gone(t: Turn, node: str) -> None:
    attempt = t.run.attempt
    assert attempt is not None
    if node not in attempt.gone:
        t.attempt(gone=(*attempt.gone, node))
    assert t.run.attempt is not None
    if set(t.run.attempt.gone) >= set(_answering(t.run, t.run.attempt)):
        _all_gone(t)


def _all_gone(t: Turn) -> None:
    if t.run.incidents and t.run.incidents[-1].stopped_at is None:
        t.incident(stopped_at=t.at)
    _triage(t)


def _collected(t: Turn, event: ev.Collected) -> None:
    if t.run.incidents and t.run.incidents[-1].attempt == event.attempt:
        t.incident(evidence=(*t.run.incidents[-1].evidence, *event.evidence))


def _triage(t: Turn) -> None:
    """Look which checkpoints are good before anything is decided."""
    attempt = t.run.attempt
    t.phase(Phase.TRIAGE, t.run.reason)
    if attempt is None or attempt.save_dir is None:
        _judge(t)
        return
    t.do(
        do.Scan(
            key=f"a{attempt.number}/scan/{t.at:.3f}",
            attempt=attempt.number,
            directory=attempt.save_dir,
            known=tuple((c.step, c.path, c.attempt) for c in t.run.lineage),
        )
    )


def _scanned(t: Turn, event: ev.Scanned) -> None:
    """The lineage is what was found good now, and what was good and not looked at again."""
    bad = {r.path for r in event.rejected}
    found = {c.path: c for c in event.found}
    kept = [c for c in t.run.lineage if c.path not in bad and c.path not in found]
    t.set(
        lineage=tuple(sorted((*kept, *found.values()), key=lambda c: c.step)),
        rejected=tuple({r.path: r for r in (*t.run.rejected, *event.rejected)}.values()),
    )
    if t.run.phase is Phase.TRIAGE:
        _judge(t)


def _judge(t: Turn) -> None:
    """Decide what comes after the attempt."""
    newest: Checkpoint | None = t.run.lineage[-1] if t.run.lineage else None
    if newest is not None and newest.step > t.run.best_step:
        t.set(best_step=newest.step, fruitless={})
    if t.run.goal is not None:
        if t.run.incidents and t.run.incidents[-1].verdict is None:
            last = t.run.incidents[-1]
            t.incident(verdict=diagnose(t.run, last), remedy=f"the run is {t.run.goal.value}")
        _end(t, t.run.goal, t.run.reason)
        return
    incident = t.run.incidents[-1]
    verdict = diagnose(t.run, incident)
    tries = t.run.fruitless.get(verdict.cause, 0) + 1
    t.set(fruitless={**t.run.fruitless, verdict.cause: tries})
    choice = remedy(t.run, verdict, tries)
    t.incident(
        verdict=verdict, remedy=choice.text, resumed_from=newest.step if newest is not None else 0
    )
    if choice.kind == "hold":
        _end(t, Phase.HELD, f"{choice.text} ({verdict.why})")
        return
    number = t.run.attempt.number if t.run.attempt else 0
    for name in choice.exclude:
        exclusion = Exclusion(
            node=name, reason=f"{verdict.cause}: {verdict.why}", since=t.at, attempt=number
        )
        t.set(excluded={**t.run.excluded, name: exclusion})
    if choice.delay_s > 0:
        reason = f"{choice.text} in {choice.delay_s:.0f} s ({verdict.cause})"
        t.phase(Phase.BACKOFF, reason, (choice.delay_s, "retry"))
    else:
        _check(t)


# --- ends -------------------------------------------------------------------------------------


def _stop_asked(t: Turn, event: ev.StopAsked) -> None:
    if t.run.ended:
        return
    t.set(goal=Phase.STOPPED, reason=f"stopped by {event.who}")
    if t.run.phase in (Phase.STARTING, Phase.RUNNING, Phase.STOPPING):
        grace = 0.0 if event.now else t.run.spec.policy.stop_grace_s
        _stop(t, t.run.reason, grace)
    else:
        _end(t, Phase.STOPPED, t.run.reason)


def _leave(t: Turn, node: str) -> None:
    number = t.run.attempt.number if t.run.attempt else 0
    t.do(do.Leave(key=f"leave/{node}/{t.run.pool[node].agent}", node=node, attempt=number))


def _end(t: Turn, phase: Phase, reason: str) -> None:
    """The run has ended: give its nodes back."""
    assert phase in ENDS
    t.drop(lambda a: not isinstance(a, do.Cancel))
    t.set(goal=None)
    if not t.run.live_jobs:
        t.phase(phase, reason)
        return
    t.phase(phase, reason, (RELEASE_S, "release"))
    for node in t.run.pool.values():
        if node.state not in (NodeState.LOST, NodeState.LEFT):
            _leave(t, node.name)
    for job in t.run.live_jobs:
        if t.run.allocations[job].state == "asked":
            _cancel(t, job, "the run ended")


def _due(t: Turn, event: ev.Due) -> None:
    t.set(deadline=None)
    waited = f"{t.at - t.run.since:.0f} s"
    if event.what == "gather":
        have, need = len(_usable(t.run)), t.run.spec.nodes
        if have >= need:
            _check(t)
        else:
            missing = _missing(t.run)
            why = f"{have} of {need} nodes are usable after {waited}"
            _end(t, Phase.HELD, f"{t.run.reason}; {why}{missing}")
    elif event.what in ("spares", "retry"):
        _check(t)
    elif event.what == "prepare":
        assert t.run.attempt is not None
        for name in set(t.run.attempt.slots) - set(t.run.attempt.prepared):
            reason = f"did not confirm within {waited} that it is free of older ranks"
            t.node(name, state=NodeState.UNFIT, since=t.at, reason=reason)
        _check(t)
    elif event.what == "start":
        text = f"no step within {waited} of the start"
        _incident(t, "no-first-step", Evidence(node="", at=t.at, source="progress", text=text))
    elif event.what == "stop":
        assert t.run.attempt is not None
        for name in set(_answering(t.run, t.run.attempt)) - set(t.run.attempt.gone):
            reason = f"did not confirm within {waited} that its ranks are gone"
            t.node(name, state=NodeState.UNFIT, since=t.at, reason=reason)
        _all_gone(t)
    elif event.what == "release":
        for job in t.run.live_jobs:
            _cancel(t, job, "the run ended and its agents did not end the job by themselves")


def _missing(run: Run) -> str:
    """Which nodes of the allocation can't be used, and why."""
    granted = [n for a in run.allocations.values() if a.state == "granted" for n in a.nodes]
    absent = [f"{name}: no agent came" for name in granted if name not in run.pool]
    unfit = [f"{n.name}: {n.reason}" for n in run.pool.values() if n.state is not NodeState.READY]
    gone = [f"{x.node}: excluded ({x.reason})" for x in run.excluded.values()]
    told = [*absent, *unfit, *gone]
    return f" ({'; '.join(told)})" if told else ""


def _noted(t: Turn, event: ev.Event) -> None:
    """Kept for the record; decides nothing."""


_ON: dict[type[ev.Event], Callable[[Turn, Any], None]] = {
    ev.Launched: _launched,
    ev.EngineStarted: _engine_started,
    ev.Submitted: _submitted,
    ev.SubmitRefused: _submit_refused,
    ev.Waiting: _noted,
    ev.AllocationSeen: _allocation_seen,
    ev.KeysSent: _keys_sent,
    ev.AgentJoined: _agent_joined,
    ev.AgentLeft: _agent_left,
    ev.NodeSilent: _node_silent,
    ev.NodeHeard: _node_heard,
    ev.Probed: _probed,
    ev.StepOverdue: _step_overdue,
    ev.Stalled: _stalled,
    ev.Prepared: _prepared,
    ev.RanksStarted: _ranks_started,
    ev.StartFailed: _start_failed,
    ev.RankExited: _rank_exited,
    ev.RanksStopped: _ranks_stopped,
    ev.Resumed: _resumed,
    ev.Progress: _progress,
    ev.Scanned: _scanned,
    ev.Collected: _collected,
    ev.StopAsked: _stop_asked,
    ev.Due: _due,
    ev.Done: _noted,
}
