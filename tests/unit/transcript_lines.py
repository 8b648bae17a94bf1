"""What one step said, ordered and changed, as the lines of a transcript."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import zip_longest
from typing import Any

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core.actions import Action
from supervisor.core.node_life import spares
from supervisor.core.story import describe
from supervisor.core.transition import Transition
from supervisor.core.types import Incident, Run

HIDDEN = {"key", "node", "attempt", "home", "address", "port"}  # in the world's name or on the line


def step_lines(before: Run, event: ev.Event, made: Transition) -> Iterator[str]:
    """One line each, its first word says what it is about; none where nothing came of the event."""
    after = made.run
    for kind, text in (
        *(("says", said) for said in describe(before, event, after)),
        *_incidents(before, after),
        *_nodes(before, after),
        *_run(before, made, event.at),
        *(("orders", order) for order in orders(made.actions)),
        *(("forgets", order) for order in orders(_forgotten(before, event, made))),
    ):
        yield f"{kind:<9} {text}"


def launched(made: Transition) -> Iterator[str]:
    """What comes of the first event."""
    yield f"{'phase':<9} {made.run.phase.value}: {made.run.reason}"
    yield from (f"{'orders':<9} {order}" for order in orders(made.actions))


def standing(run: Run, now: float) -> Iterator[str]:
    """Where a run stands that a set-up has brought there."""
    yield f"{'phase':<9} {run.phase.value}{_deadline(run, now)}"
    if run.slots:
        yield f"{'slots':<9} {_slots(run.slots)}"
        yield f"{'spares':<9} {' '.join(spares(run)) or 'none'}"


def orders(actions: list[Action]) -> Iterator[str]:
    """Alike ones on one line: their nodes, then their fields, each once where all have the same."""
    alike: dict[tuple[str, int | None], list[Action]] = {}
    for one in actions:
        alike.setdefault((type(one).__name__, getattr(one, "attempt", None)), []).append(one)
    for (name, attempt), group in alike.items():
        words = [name]
        if isinstance(group[0], act.AgentCommand):
            nodes = dict.fromkeys(a.node for a in group if isinstance(a, act.AgentCommand))
            words = [name, " ".join(nodes), f"attempt={attempt}"]
        for field in fields(group[0]):
            values = [_value(getattr(a, field.name)) for a in group]
            if field.name not in HIDDEN and any(values):
                same = len({*values}) == 1
                words.append(f"{field.name}={values[0] if same else ','.join(values)}")
        yield " ".join(words)


def _value(value: Any) -> str:
    if value in (None, "", ()) or value is False:
        return ""
    if isinstance(value, tuple):
        named = (v.rank if isinstance(v, act.BadEnd) else v for v in value)
        return ",".join(str(v[1]) if isinstance(v, tuple) else str(v) for v in named)
    if isinstance(value, float):
        return f"{value:g}"
    return f'"{value}"' if " " in str(value) else str(value)


def _forgotten(before: Run, event: ev.Event, made: Transition) -> list[Action]:
    """Actions whose answer no longer matters, beyond the one that this event answers."""
    answered, ordered = getattr(event, "key", ""), {a.key for a in made.actions}
    return [
        a
        for key, a in before.pending.items()
        if key not in made.run.pending and key != answered and key not in ordered
    ]


def _incidents(before: Run, after: Run) -> Iterator[tuple[str, str]]:
    for number, (was, now) in enumerate(zip_longest(before.incidents, after.incidents), start=1):
        if was is not now and now is not None:
            yield from _incident(number, was, now)


def _incident(number: int, was: Incident | None, now: Incident) -> Iterator[tuple[str, str]]:
    if was is None:
        where = f" at step {now.step}" if now.step is not None else ""
        yield "incident", f"{number}: {now.cause}, attempt {now.attempt}{where}"
    for seen in now.evidence[len(was.evidence) if was else 0 :]:
        yield "evidence", f"{f'{seen.node}, ' if seen.node else ''}{seen.source}: {seen.text}"
    verdict = now.verdict
    if verdict is not None and (was is None or was.verdict is not verdict):
        named = ", ".join(verdict.culprits) or "nobody"
        yield "verdict", f"{verdict.cause}, {named} ({verdict.confidence}): {verdict.why}"
        yield "remedy", now.remedy
    if now.relaunched_at is not None and (was is None or was.relaunched_at is None):
        yield "recovery", f"ranks of incident {number}'s relaunch run"
    if now.first_step_at is not None and (was is None or was.first_step_at is None):
        lost = f", {now.steps_lost} steps lost" if now.steps_lost is not None else ""
        took = now.first_step_at - now.confirmed_at
        yield "recovery", f"incident {number} is over after {took:g} s{lost}"


def _nodes(before: Run, after: Run) -> Iterator[tuple[str, str]]:
    for name, node in after.pool.items():
        was = before.pool.get(name)
        why = f": {node.reason}" if node.reason else ""
        if was is None and why:
            yield "node", f"{name} is {node.state.name.lower()}{why}"
        elif was is not None and was.state is not node.state:
            yield "node", f"{name} {was.state.name.lower()} -> {node.state.name.lower()}{why}"
    for name, exclusion in after.excluded.items():
        if name not in before.excluded:
            yield "excluded", f"{name}: {exclusion.reason}"
    for name in before.excluded:
        if name not in after.excluded:
            yield "included", name


def _run(before: Run, made: Transition, at: float) -> Iterator[tuple[str, str]]:
    after = made.run
    if after.restarts_without_progress != before.restarts_without_progress:
        counts = (f"{cause} {tries}" for cause, tries in after.restarts_without_progress.items())
        yield "restarts", f"without progress: {', '.join(counts) or 'none'}"
    if [c.path for c in after.lineage] != [c.path for c in before.lineage]:
        steps = " ".join(str(c.step) for c in after.lineage)
        yield "lineage", steps or "empty"
    if len(made.phases) > 1:
        yield "phase", f"{' -> '.join(phase.value for phase in made.phases)}{_deadline(after, at)}"
    elif after.deadline != before.deadline and after.deadline is not None:
        yield "phase", f"{after.phase.value}{_deadline(after, at)}"
    if after.slots != before.slots:
        yield "slots", _slots(after.slots) or "none"
    if after.slots and (spares(after), after.slots) != (spares(before), before.slots):
        yield "spares", " ".join(spares(after)) or "none"


def _slots(slots: tuple[str, ...]) -> str:
    return " ".join(name or "(empty)" for name in slots)


def _deadline(run: Run, now: float) -> str:
    if run.deadline is None:
        return ""
    kind = run.deadline.kind.name.lower().replace("_", " ")
    return f"; deadline: {kind} in {run.deadline.at - now:g} s"
