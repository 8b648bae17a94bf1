"""What can happen in a transcript: `world`, and the commands that come after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

from scenario import HOME, Scenario, checked
from transcript_lines import launched, standing, step_lines

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.actions import ACTIONS, Action
from supervisor.core.attention import EngineView, attention
from supervisor.core.check_status import Status
from supervisor.core.failure_detector import FailureDetector
from supervisor.core.signs_of_life import Signs
from supervisor.core.transition import Transition, due
from supervisor.core.types import Checkpoint, Evidence, Fault, Phase


class Stage(Scenario):
    """A world in which only that happens what a transcript says, and each event's lines."""

    def __init__(self, *args: Any, **more: Any) -> None:
        self.shown: list[tuple[str, list[str]]] = []  # events in words, and what came of each
        super().__init__(*args, **more)
        self.detector = FailureDetector(self.run.spec.policy)

    def take(self, kind: type[ev.Event], /, *, after: float = 1.0, **more: Any) -> list[Action]:
        """Time passes until the event; a deadline that comes first expires."""
        self.wait(after)
        return super().take(kind, after=0.0, **more)

    def wait(self, seconds: float) -> None:
        """Nothing happens, but that deadlines expire."""
        at = self.now + seconds
        while self.run and (kind := due(self.run, at)) is not None:
            assert self.run.deadline is not None
            after = max(0.0, self.run.deadline.at - self.now)
            super().take(ev.DeadlineExpired, after=after, kind=kind)
        self.now = at

    def fold(self, event: ev.Event) -> Transition:
        made = checked(self.run, event)
        came = list(step_lines(self.run, event, made) if self.run else launched(made))
        if came or not isinstance(event, ev.LogsKept):
            self.shown.append((_words(event), came))
        return made


def _words(event: ev.Event) -> str:
    match event:
        case ev.DeadlineExpired():
            return f"deadline: {event.kind.name.lower().replace('_', ' ')}"
        case ev.AgentEvent():
            return f"{_kebab(type(event))} {event.reporter}"
    return f"{_kebab(type(event))} {getattr(event, 'node', '')}".strip()


def _kebab(kind: type) -> str:
    name = kind.__name__
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in name).removeprefix("-")


def world(flags: list[str], named: dict[str, str]) -> Stage:
    """`world nodes=2 spares=1`: a launch. With `phase=running` it has come that far, unshown.

    Also: `ranks=`, `keep=`, `keep_every=`, keys of the policy, `exclude=NODE`, `seed=STEP`, and
    the words `preflight` and `no-checkpoints`.
    """
    among(flags, "preflight", "no-checkpoints")
    phase = named.pop("phase", "")
    more: dict[str, Any] = {"preflight": "preflight" in flags}
    if "no-checkpoints" in flags:
        more["home"] = None
    if "exclude" in named:
        more["operator_excluded"] = {named.pop("exclude"): "excluded by people"}
    if "seed" in named:
        step = named.pop("seed")
        path = f"/old/step-{step}"
        more["seed"] = Checkpoint(step=int(step), path=path, attempt=0, verified_at=1.0)
    if "backoff_s" in named:
        more["backoff_s"] = tuple(float(s) for s in named.pop("backoff_s").split(","))
    more |= {
        key: float(value) if key.endswith("_s") else int(value) for key, value in named.items()
    }
    stage = Stage(**more)
    if phase:
        stage.to(Phase(phase))
        stage.shown = [("", list(standing(stage.run, stage.now)))]
    return stage


def among(words: Iterable[str], *valid: str) -> None:
    unknown = [word for word in words if word not in valid]
    assert not unknown, f"{' '.join(unknown)}: not known here; valid: {', '.join(valid)}"


# --- commands: events by their names --------------------------------------------------------------

COMMANDS: dict[str, Callable[..., Any]] = {}


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    COMMANDS[function.__name__.replace("_", "-")] = function
    return function


@command
def advance(p: Stage, span: str) -> None:
    """`advance 2.5s`: nothing happens for so long, but that deadlines expire."""
    p.wait(float(span.removesuffix("s")))


TICK_S = 0.25  # how often the engine looks


@command
def heard(p: Stage, nodes: str, span: str, *, steps: str = "") -> None:
    """`heard n1,n2 5s`: for so long these agents, or `none`, send a heartbeat a second.

    With `steps=0.5s` the ranks make steps. What comes of it, the failure detector says.
    """
    ticks = round(float(span.removesuffix("s")) / TICK_S)
    every = round(float(steps.removesuffix("s")) / TICK_S) if steps else ticks + 1
    for tick in range(1, ticks + 1):
        at = p.now + TICK_S
        found: list[ev.Event] = []
        for node in nodes.split(",") if tick % 4 == 0 and nodes != "none" else ():
            found += p.detector.heard(node, at, p.run)
        attempt = p.run.attempt
        if tick % every == 0 and attempt is not None:
            number = (attempt.step or 0) + 1
            for node in nodes.split(","):
                if node in attempt.slots:
                    p.detector.signs.heard(node, attempt.number, number, Signs(hook=True), at, 1.0)
            p.detector.stepped(attempt.number, number, at)
            found.append(ev.Progress(at=at, attempt=attempt.number, step=number))
        found += p.detector.check(at, p.run)
        for event in found:
            names = [f.name for f in fields(event) if f.name != "at"]
            p.take(type(event), after=at - p.now, **{name: getattr(event, name) for name in names})
        p.now = at


@command
def needs_attention(p: Stage) -> None:
    """What `superv status` says under "needs attention" now."""
    seen = EngineView()
    lines = [
        f"{one.what:<9} {'' if one.since is None else f'for {p.now - one.since:.0f} s'}: {one.text}"
        for one in attention(p.run, p.now, seen)
    ]
    p.shown.append(("", lines or ["nothing"]))


@command
def answer(p: Stage, kind: str, who: str = "", *flags: str, **more: str) -> None:
    """`answer stop n1,n3`: well, where nothing else is said: `port=`, `outcome=`, `stuck=PID`.

    `all` answers all pending ones of the kind; `late` one that is not waited for any more.
    What a scan finds comes of `saves` and `breaks`.
    """
    among(flags, "late", "cold")
    names = {_kebab(action): action for action in ACTIONS.values()}
    assert kind in names, f"no action is called {kind}; there are: {', '.join(names)}"
    asked = list(reversed(p.ordered) if "late" in flags else p.run.pending.values())
    there = [a for a in asked if type(a) is names[kind]]
    if who not in ("", "all"):
        by_node = {a.node: a for a in reversed(there) if isinstance(a, act.AgentCommand)}
        there = [by_node[node] for node in who.split(",") if node in by_node]
    missing = len(there) < len(who.split(","))
    waiting = ", ".join(p.run.pending) or "nothing"
    assert not missing, f"no {kind} of {who or 'all'} waits for an answer; waiting: {waiting}"
    for action in there:
        if action.key in p.run.pending or "late" in flags:
            p.reply(action, **_fields(p, action, flags, more))


def _fields(p: Stage, action: Action, flags: tuple[str, ...], more: dict[str, str]) -> Any:
    made: dict[str, Any] = dict(more)
    if "port" in made:
        made["port"] = int(made["port"])
    if "stuck" in made:
        made["stuck"] = tuple(int(pid) for pid in made["stuck"].split(","))
    if "problem" in made and not isinstance(action, act.Discard | act.Quarantine):
        made["problems"] = (made.pop("problem"),)
    if "evidence" in made and isinstance(action, act.Collect):
        seen = Evidence(node=action.node, at=p.now, source="agent", text=made["evidence"])
        made["evidence"] = (seen,)
    if isinstance(action, act.Start):
        made["warm"] = "cold" not in flags
    return made


@command
def submit_refused(p: Stage, why: str) -> None:
    (key,) = (a.key for a in p.run.pending.values() if isinstance(a, act.Submit))
    p.take(ev.SubmitRefused, key=key, why=why)


@command
def waiting(p: Stage, why: str) -> None:
    p.take(ev.Waiting, key=next(iter(p.run.pending)), why=why)


@command
def slurm(p: Stage, state: str, **more: str) -> None:
    """`slurm running nodes=n1,n2 down=n2`, `slurm ended raw=TIMEOUT`: of the newest job."""
    seen: dict[str, Any] = dict(more)
    if state == "running":  # it says all of them each time
        known = p.run.allocations[list(p.run.allocations)[-1]].nodes
        seen["nodes"] = tuple(more["nodes"].split(",")) if "nodes" in more else known
    seen["down"] = tuple(more["down"].split(",")) if "down" in more else ()
    p.seen(state, seen.pop("raw", ""), **seen)


@command
def agent_joined(p: Stage, nodes: str, **more: str) -> None:
    """`agent-joined n1,n2`; `attempt=1 ranks=1` says what it holds, `problem=` what it found."""
    among(more, "attempt", "ranks", "problem", "job")
    said: dict[str, Any] = {k: int(more[k]) for k in ("attempt", "ranks") if k in more}
    if "problem" in more:
        said["problems"] = (more["problem"],)
    if "job" in more:
        said["job_id"] = more["job"]
    for node in nodes.split(","):
        p.join(node, **said)


@command
def agent_left(p: Stage, node: str, reason: str) -> None:
    p.take(ev.AgentLeft, node=node, agent=p.run.pool[node].agent, reason=reason)


@command
def heartbeat_lost(p: Stage, nodes: str) -> None:
    for node in nodes.split(","):
        p.silent(node)


@command
def heartbeat_regained(p: Stage, nodes: str) -> None:
    for node in nodes.split(","):
        p.take(ev.HeartbeatRegained, node=node)


@command
def step_overdue(p: Stage) -> None:
    p.overdue()


@command
def hang_detected(p: Stage, limit: str) -> None:
    attempt = p.run.attempt
    assert attempt is not None and attempt.step is not None and attempt.step_at is not None
    limit_s = float(limit.removesuffix("s"))
    last = {"last_step": attempt.step, "last_at": attempt.step_at}
    after = max(0.0, attempt.step_at + limit_s - p.now)
    p.take(ev.HangDetected, after=after, limit_s=limit_s, **last)


@command
def health(p: Stage, nodes: str, status: str, check: str = "", text: str = "", *of: str) -> None:
    """`health n2 FAIL gpu.count "7 of 8 GPUs"`; with `shared` the fault is not the node's own."""
    among(of, "shared")
    fault = Fault(check=check, status=Status(status), text=text, node_fault="shared" not in of)
    for node in nodes.split(","):
        p.checked(node, status, *([fault] if check else []))


@command
def rank_exited(p: Stage, ranks: str, *flags: str, **more: str) -> None:
    """`rank-exited 3 code=1`, `signal=9` or `unwatched`; `tail=` its last line, `clock=-60s`."""
    among(flags, "unwatched")
    among(more, "code", "signal", "tail", "clock")
    code, signal = more.get("code"), more.get("signal")
    assert len([*flags, *({"code", "signal"} & more.keys())]) == 1, "code=, signal= or unwatched"
    for rank in ranks.split(","):
        p.exit(
            int(rank),
            None if code is None else int(code),
            signal=None if signal is None else int(signal),
            clock=float(more.get("clock", "0").removesuffix("s")),
            tail=(more["tail"],) if "tail" in more else (),
        )


@command
def start_failed(p: Stage, nodes: str, why: str) -> None:
    attempt = p.run.attempt
    assert attempt is not None
    orders = {a.node: a for a in p.ordered if isinstance(a, act.Start)}
    for node in nodes.split(","):
        key = orders[node].key
        p.take(ev.StartFailed, key=key, node=node, attempt=attempt.number, why=why)


@command
def resumed(p: Stage, node: str, step: str, *flags: str, others: str = "0") -> None:
    """`resumed n1 3`: from inside the rank; `line`: a line says so, and of `others=2` ranks too."""
    among(flags, "line")
    attempt = p.run.attempt
    assert attempt is not None
    said = {"log": "line" in flags, "others": int(others)}
    p.take(ev.Resumed, attempt=attempt.number, node=node, step=int(step), **said)


@command
def progress(p: Stage, step: str, *flags: str) -> None:
    """`progress 1`: hooks tell it; `line`: lines do; `per-epoch`: which begin again with each."""
    among(flags, "line", "per-epoch")
    p.progress(int(step), log="line" in flags, per_epoch="per-epoch" in flags)


@command
def lines_unread(p: Stage, node: str, line: str, pattern: str = "") -> None:
    attempt = p.run.attempt
    assert attempt is not None
    said = {"node": node, "rank": 0, "line": line, "pattern": pattern}
    p.take(ev.LinesUnread, attempt=attempt.number, **said)


@command
def saves(p: Stage, *steps: str) -> None:
    """The ranks save checkpoints; nobody has looked at them yet."""
    for step in steps:
        p.save(int(step))


@command
def breaks(p: Stage, *steps: str) -> None:
    """What is there of these steps is no good any more."""
    p.corrupt |= {c.path for c in p.disk if str(c.step) in steps}


@command
def scanned(p: Stage) -> None:
    """The engine's own look at checkpoints while ranks run."""
    p.take(ev.Scanned, key="look", **p.scan_found())


@command
def scanned_late(p: Stage, step: str, attempt: str) -> None:
    """A checkpoint of an attempt that is over turns up."""
    path = f"{HOME}/a{int(attempt):04d}/step-{step}"
    found = Checkpoint(step=int(step), path=path, attempt=int(attempt), verified_at=p.now)
    p.take(ev.Scanned, key="look", found=(found,))


@command
def exclusions(p: Stage, **nodes: str) -> None:
    """`exclusions n1="bad link"`: all nodes that people keep out of runs now, and why."""
    p.take(ev.OperatorExclusionsChanged, operator_excluded=nodes)


@command
def stop_requested(p: Stage, who: str, now: str = "") -> None:
    among([now] if now else [], "now")
    p.take(ev.StopRequested, who=who, now=bool(now))


@command
def resume_requested(p: Stage, who: str, include: str = "") -> None:
    names = tuple(include.split(",")) if include else ()
    p.take(ev.ResumeRequested, who=who, spec=p.run.spec, include=names)


@command
def quarantine_requested(p: Stage, who: str, step: str, later: str = "", *, reason: str) -> None:
    among([later] if later else [], "and-later")
    asked = {"who": who, "step": int(step), "reason": reason, "and_later": bool(later)}
    p.take(ev.QuarantineRequested, **asked)


@command
def engine_started(
    p: Stage, *, after: str = "1s", host: str = "login", endpoint: str = "tcp://10.0.0.1:5555"
) -> None:
    """The engine was away for so long, in which no deadline expired, and is started again."""
    where = {"epoch": p.run.epoch + 1, "host": host, "endpoint": endpoint}
    Scenario.take(p, ev.EngineStarted, after=float(after.removesuffix("s")), **where)
    p.detector = FailureDetector(p.run.spec.policy)
