"""Turns heartbeats and steps, and their absence, into events. Time comes as an argument."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from supervisor.core.events import (
    EngineIsolated,
    Event,
    HangDetected,
    HeartbeatLost,
    HeartbeatRegained,
    IsolationEnded,
    StepOverdue,
)
from supervisor.core.liveness import STOPPED_S, SUSPECTS_FACTOR, asked, is_stopped
from supervisor.core.node_life import gone_for_slurm
from supervisor.core.policy import Policy
from supervisor.core.rhythm import RhythmLearner, StepRate
from supervisor.core.signs_of_life import SignsOfLife
from supervisor.core.types import Node, NodeState, Phase, Pool, Run

SAVE = "save"  # the hooks' phase
HEARTBEAT_S = 1.0  # agents send one a second
LATELY_FLOOR_S = 1.25
MAX_TICK_S = 1.0  # checks further apart than this mean that the engine itself stood still
WATCHED = (NodeState.READY, NodeState.SUSPECT, NodeState.UNUSABLE)
RETURN_S = 10.0  # agents redial within seconds; so long nobody is suspected who is not back
PARTLY_S = 30.0  # silence of half the agents, beside another half that is heard all the time
OVERDUE_AGAIN_S = 10.0  # an overdue step is said again so often: what it confirms may change
PEERS_S = 2.5  # peers have so long to say whether they reach a suspect before a step confirms it
LOOK_AGAIN_S = (15.0, 120.0)  # a silent node is looked for again: soon, then less and less often


class FailureDetector:
    """What was heard from whom and when; one per engine, begun again with it."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._heard: dict[str, float] = {}  # the node that was heard longest ago is the first
        self._pool: Pool | None = None  # as of the last check
        self._checked: float | None = None
        self._attempt = 0
        self._step: tuple[int, float] | None = None  # the newest step and when it was heard
        self.rhythm, self.rate = RhythmLearner(), StepRate()
        self._saving: set[str] = set()  # nodes whose rank furthest behind is in that phase
        self._saved = False  # ranks have been in phase `save` since the newest step
        self.written_at = float("-inf")  # when an unfinished checkpoint was last seen to grow
        self._unseen = False  # what lies between the newest step and the next is no interval
        self._reported_overdue: tuple[int, frozenset[str]] | None = None
        self._overdue_at = float("-inf")
        self._reported_hang: int | None = None
        self.signs = SignsOfLife()
        self._awaited: dict[str, float] = {}  # who may be on the way back, and until when
        self._alone = 0.0  # when nobody was heard, or everybody, for the last time
        self._said = 0.0  # when it was said last that this engine is cut off
        self._told_of_none = float("-inf")  # when nobody was heard who tells of steps

    def heard(self, node: str, at: float, run: Run) -> list[Event]:
        """An agent sent something."""
        self._heard.pop(node, None)
        self._heard[node] = at
        self._awaited.pop(node, None)
        known = run.pool.get(node)
        if known is not None and known.state in (NodeState.SUSPECT, NodeState.LOST):
            return [HeartbeatRegained(at=at, node=node)]
        return []

    def last_heard(self, nodes: Iterable[str]) -> float | None:
        """When one of these nodes was last heard, or first missed by this engine."""
        return max((self._heard[name] for name in nodes if name in self._heard), default=None)

    def in_phase(self, node: str, attempt: int, phase: str) -> None:
        """What a node's ranks do, as their hooks say; empty where there are none."""
        if attempt != self._attempt:
            self._begin(attempt)
        (self._saving.add if phase == SAVE else self._saving.discard)(node)
        self._saved |= phase == SAVE

    def stepped(self, attempt: int, step: int, at: float) -> bool:
        """The run has made a step; returns whether it is a new one of the attempt."""
        if attempt != self._attempt:
            self._begin(attempt)
        if self._step is not None:
            if step <= self._step[0]:
                return False
            if not self._unseen:
                self.rhythm.learn(at - self._step[1], saved=self._saved)
        self._step, self._unseen = (step, at), False
        self.rate.stepped(at, step)
        self._saved = bool(self._saving)
        return True

    def _begin(self, attempt: int) -> None:
        self._attempt, self._step = attempt, None
        self.rate = StepRate()
        self._saving, self._saved = set(), False

    def _take_over(self, now: float, run: Run) -> None:
        """Steps that ended before this engine began are late from its first check on."""
        self.rhythm.known = run.rhythm
        attempt = run.attempt
        if run.phase is not Phase.RUNNING or attempt is None or attempt.step is None:
            return
        if attempt.number != self._attempt:
            self._begin(attempt.number)
        if self._step is None:
            self._step, self._unseen = (attempt.step, now), True

    def check(self, now: float, run: Run) -> list[Event]:
        """What has become true by the passing of time. Call it a few times a second."""
        if self._checked is not None and now - self._checked > MAX_TICK_S:
            # The engine was stopped or starved; nobody else was silent meanwhile.
            away = now - self._checked
            self._heard = {name: min(now, at + away) for name, at in self._heard.items()}
            if self._step is not None:
                self._step = (self._step[0], min(now, self._step[1] + away))
        self._checked = now
        self._take_over(now, run)
        self.signs.look(now, run)
        silences = self._silences(now, run)
        cut_off = run.isolated_since is not None  # lateness is judged a moment after it is over
        cut_off |= any(isinstance(e, EngineIsolated) for e in silences)
        said = (*self.signs.unread(now, run), *self.signs.hook_troubled(now, run))
        return [*silences, *self._lateness(now, run, cut_off), *said]

    def _silences(self, now: float, run: Run) -> list[Event]:
        if run.ended:
            return []
        patience = self._policy.heartbeat_timeout_s
        if run.pool is not self._pool:
            self._pool = run.pool
            for node in run.pool.values():
                if node.state in WATCHED:
                    self._heard.setdefault(node.name, now)
        if run.isolated_since is None and not self._any_silent(now, run, patience):
            return []
        watched = [n for n in run.pool.values() if n.state in WATCHED]
        silent = [n for n in watched if self._silent(n.name, now, patience)]
        news, cut_off = self._isolation(now, run, watched)
        if cut_off:
            return news
        return news + [
            HeartbeatLost(at=now, node=n.name, last_heard=self._heard[n.name])
            for n in silent
            if self._silent(n.name, now, patience)
            and (n.state is not NodeState.SUSPECT or _look_due(n, now))
        ]

    def _isolation(self, now: float, run: Run, watched: list[Node]) -> tuple[list[Event], bool]:
        """Whether this engine is cut off, and what is new about that.

        It is where half of the nodes or more fell silent at once and nobody else says that they
        are gone. Nodes that were silent before, each for itself, say nothing about it.
        """
        gone, since = gone_for_slurm(run), run.isolated_since
        counted = [
            n
            for n in watched
            if n.state is not NodeState.SUSPECT and n.name not in gone and not _unreached(n, since)
        ]
        # Heartbeats come once a second, not all at once: when this engine is cut off, its agents
        # fall silent one after the other within that second. So the others must have been heard
        # a moment ago.
        lately = max(LATELY_FLOOR_S, self._policy.heartbeat_timeout_s - HEARTBEAT_S)
        unheard = [n for n in counted if self._silent(n.name, now, lately)]
        if not unheard or len(unheard) == len(counted):
            self._alone = now
        patience = self._policy.heartbeat_timeout_s
        fell_silent = any(self._silent(n.name, now, patience) for n in unheard)
        cut_off = 2 * len(unheard) >= len(counted) and (fell_silent or since is not None)
        if not unheard or not cut_off:
            if since is None:
                return [], False
            self._awaited |= {n.name: now + RETURN_S for n in unheard}  # on their way back
            why = (
                "who is silent is gone, by what peers or Slurm say"
                if gone or any(_unreached(n, since) for n in watched)
                else "agents are heard again"
            )
            return [self._over(now, since, why)], False
        if since is None:
            self._said = now
            return [self._cut_off(now, unheard)], True
        if now - max(since, self._alone) > PARTLY_S:
            return [self._over(now, since, "some agents are heard all the time")], False
        if now - self._said > max(LOOK_AGAIN_S[0], min(LOOK_AGAIN_S[1], self._said - since)):
            self._said = now
            return [self._cut_off(now, unheard)], True
        return [], True

    def _any_silent(self, now: float, run: Run, patience_s: float) -> bool:
        """Mostly no node is: then no more of them are looked at than the one heard longest ago."""
        for name, at in self._heard.items():
            if now - at <= patience_s:
                return False
            node = run.pool.get(name)
            if node is not None and node.state in WATCHED and self._silent(name, now, patience_s):
                return True
        return False

    def _silent(self, name: str, now: float, patience_s: float) -> bool:
        return now - self._heard[name] > patience_s and now > self._awaited.get(name, now - 1)

    def _cut_off(self, now: float, unheard: list[Node]) -> Event:
        names = tuple(n.name for n in unheard)
        return EngineIsolated(at=now, since=max(self._heard[n] for n in names), silent=names)

    def _over(self, now: float, since: float, why: str) -> Event:
        """Steps that nobody could tell of are not late, nor is the time between them known."""
        if self._step is not None:
            self._step = (self._step[0], min(now, self._step[1] + now - since))
            self._unseen = True
        return IsolationEnded(at=now, why=why)

    def _lateness(self, now: float, run: Run, cut_off: bool) -> list[Event]:
        attempt = run.attempt
        if (
            cut_off
            or self._step is None
            or attempt is None
            or attempt.number != self._attempt
            or run.phase is not Phase.RUNNING
        ):
            return []
        step, at = self._step
        saving = any(name in attempt.slots for name in self._saving)
        overdue = self.rhythm.overdue_s(self._policy, saving=saving)
        hang = self.rhythm.hang_s(self._policy, saving=saving)
        if now - at <= min(hang, overdue or hang):
            return []
        known = self._would_have_told(run, attempt.slots)
        if known is None:
            self._told_of_none = now
        elif now - self._told_of_none <= RETURN_S:
            return []  # who is heard again tells of its ranks' newest step in a moment
        if known is None and self._tellers_stopped(run, attempt.slots):
            # They can tell nothing for ranks that go on. That is waited for, and not without end.
            known, overdue, hang = now, None, max(SUSPECTS_FACTOR * hang, STOPPED_S)
        if known is None or known - at <= min(hang, overdue or hang):
            return []
        late: list[Event] = []
        signs = max(at, self.signs.advanced_at)
        if overdue is not None and known - signs > overdue:
            late += self._overdue_news(now, run, (step, at), overdue)
        at = max(at, self.written_at)
        at = max(at, self.signs.alive_at(now, run, at, hang))
        if known - at > hang and self._reported_hang != attempt.number:
            self._reported_hang = attempt.number
            late.append(HangDetected(at=now, last_step=step, last_at=at, limit_s=hang))
        return late

    def _overdue_news(
        self, now: float, run: Run, last: tuple[int, float], limit_s: float
    ) -> list[Event]:
        """What an overdue step says about suspects, where it has not said so just now."""
        step, at = last
        suspects = frozenset(
            name
            for name in run.pool.group(NodeState.SUSPECT)
            if name in run.slots and (not asked(run, name) or _looked(run.pool[name], now))
        )
        overdue = (step, suspects)
        again = now - self._overdue_at > OVERDUE_AGAIN_S
        if not suspects or (overdue == self._reported_overdue and not again):
            return []
        self._reported_overdue, self._overdue_at = overdue, now
        about = tuple(sorted(suspects))
        return [StepOverdue(at=now, last_step=step, last_at=at, limit_s=limit_s, suspects=about)]

    def _would_have_told(self, run: Run, slots: Collection[str]) -> float | None:
        """Until when a step would have been told of: when somebody was heard who tells of steps.

        Where it is not known who does (an engine that has just begun), all nodes have to be heard.
        None where those are silent.
        """
        tellers = self._tellers(slots)
        heard = [
            self._heard.get(name, float("-inf"))
            for name in tellers or slots
            if name in run.pool and run.pool[name].state in (NodeState.READY, NodeState.UNUSABLE)
        ]
        if not heard or not (tellers or len(heard) == len(slots)):
            return None
        return max(heard) if tellers else min(heard)

    def _tellers(self, slots: Collection[str]) -> list[str]:
        return [name for name in self.signs.tellers() if name in slots]

    def _tellers_stopped(self, run: Run, slots: Collection[str]) -> bool:
        """Whether the silent ones of those who would tell of a step are all stopped."""
        suspects = run.pool.group(NodeState.SUSPECT)
        silent = [name for name in self._tellers(slots) or slots if name in suspects]
        return bool(silent) and all(is_stopped(run, name) for name in silent)


def _unreached(node: Node, since: float | None) -> bool:
    """Whether peers were asked while this engine was cut off, and can't reach the node either."""
    asked = since is not None and node.looked_at is not None and node.looked_at >= since
    return asked and bool(node.unreachable) and not node.reachable


def _looked(node: Node, now: float) -> bool:
    """Whether peers had time to answer since it fell silent: an older look says nothing."""
    return now - max(node.looked_at or node.since, node.since) > PEERS_S


def _look_due(node: Node, now: float) -> bool:
    """Whether it is time to look for a silent node again."""
    last = node.looked_at if node.looked_at is not None else node.since
    soonest, latest = LOOK_AGAIN_S
    return now - last > min(latest, max(soonest, last - node.since))
