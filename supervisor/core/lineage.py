"""Which checkpoints count, which are kept, and which a person has called bad."""

from __future__ import annotations

from dataclasses import replace

from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.turn import Turn
from supervisor.core.types import Attempt, Checkpoint, NodeState, Phase, Retired, Run


def take_in(t: Turn, event: ev.Scanned) -> list[Checkpoint]:
    """Fold what a look at the disk has found into the lineage; returns what is new in it."""
    bad = {r.path for r in (*t.run.rejected, *event.rejected)}
    kept = [c for c in t.run.lineage if c.path not in bad]
    known = {c.path for c in t.run.lineage} | t.run.retired.keys()
    attempt = t.run.attempt
    number = attempt.number if attempt else 0
    new = [c for c in event.found if c.path not in known | bad and c.attempt == number]
    last = t.run.incidents[-1] if t.run.incidents else None
    if last is not None and last.attempt == number and last.cause == "wrong-step":
        new = []  # saved by ranks that were not where they should have been
    rejected = [r for r in event.rejected if r.path not in t.run.retired]
    t.set(rejected=tuple({r.path: r for r in (*t.run.rejected, *rejected)}.values()))
    if attempt and attempt.tainted_from is not None:
        for checkpoint in [c for c in new if c.step >= attempt.tainted_from]:
            new.remove(checkpoint)
            why = f"trained from what is in quarantine since step {attempt.tainted_from}"
            retire(t, checkpoint, why, quarantined=True)
    t.set(lineage=tuple(sorted((*kept, *new), key=lambda c: c.step)))
    if t.run.phase is Phase.TRIAGE and attempt and over(t.run, attempt):
        left = [
            Checkpoint(step=r.step, path=r.path, attempt=number, verified_at=0.0)
            for r in rejected
            if r.incomplete and r.path.startswith(f"{attempt.save_dir}/")
        ]
        t.set(leftovers=(*t.run.leftovers, *left))
    return new


def over(run: Run, attempt: Attempt) -> bool:
    """Whether every node has confirmed that no rank is left that could still write."""
    return set(attempt.gone) >= set(attempt.slots) and all(
        name in run.pool and run.pool[name].state is NodeState.READY for name in attempt.slots
    )


def retire(t: Turn, what: Checkpoint, why: str, *, quarantined: bool = False) -> None:
    """Take a checkpoint out of the lineage, and have it moved or deleted.

    One from outside of the run's own directories only leaves the lineage.
    """
    home = t.run.spec.checkpoint_dir
    ours = home is not None and own(t.run, what)
    one = Retired(
        step=what.step, path=what.path, at=t.at, why=why, quarantined=quarantined, done=not ours
    )
    t.set(
        retired={**t.run.retired, what.path: one},
        lineage=tuple(c for c in t.run.lineage if c.path != what.path),
    )
    if ours and home is not None:
        kind = do.Quarantine if quarantined else do.Discard
        name = kind.__name__.lower()
        t.do(kind(key=f"{name}/{what.path}", path=what.path, home=home))


def own(run: Run, one: Checkpoint) -> bool:
    """Whether an attempt of this run saved it, where the run saves now."""
    return one.attempt > 0 and one.path.startswith(f"{run.spec.checkpoint_dir}/a")


def retain(t: Turn) -> None:
    """Give up checkpoints beyond the newest ones, and what unfinished ones have left.

    Never the newest; never the one that the attempt resumed from, until the attempt itself has a
    newer one; never one that was there before the run.
    """
    spec, attempt = t.run.spec, t.run.attempt
    mine = [c for c in t.run.lineage if own(t.run, c)]
    if not spec.keep or attempt is None or not mine:
        return
    first = attempt.resume
    saved = any(c.attempt == attempt.number for c in mine)
    for one in mine[: -spec.keep]:
        milestone = spec.keep_every and one.step % spec.keep_every == 0
        if not milestone and (saved or first is None or one.path != first.path):
            retire(t, one, f"beyond the newest {spec.keep}")
    for rest in t.run.leftovers:
        if rest.step <= mine[-1].step:
            retire(t, rest, "was never finished")
    t.set(leftovers=tuple(r for r in t.run.leftovers if r.path not in t.run.retired))


def put_away(t: Turn, event: ev.PutAway) -> None:
    one = t.run.retired.get(event.path)
    if one is not None:
        told = replace(one, done=not event.problem, problem=event.problem)
        t.set(retired={**t.run.retired, event.path: told})
