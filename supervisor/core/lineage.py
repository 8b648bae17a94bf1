"""Which checkpoints count, which are kept, and which a person has called bad."""

from __future__ import annotations

from dataclasses import replace

from supervisor.core import actions as act
from supervisor.core import events as ev
from supervisor.core import names
from supervisor.core.transition import Transition, handles
from supervisor.core.types import (
    Attempt,
    Cause,
    Checkpoint,
    NodeState,
    Phase,
    Rejected,
    Retired,
    Run,
)


def merge_scan(t: Transition, event: ev.Scanned) -> list[Checkpoint]:
    """Fold what a scan has found into the lineage; returns what is new in it."""
    bad = {r.path for r in event.rejected}
    kept = [c for c in t.run.lineage if c.path not in bad]
    known = {c.path for c in t.run.lineage}
    attempt = t.run.attempt
    number = attempt.number if attempt else 0
    good = [c for c in event.found if c.path not in bad and counts(t.run, c)]
    new = [c for c in good if c.path not in known]
    fresh = {c.path: c.fingerprint for c in good}
    if t.run.phase is Phase.TRIAGE:  # what ranks have been told to resume stays as it is
        kept = [replace(c, fingerprint=fresh.get(c.path) or c.fingerprint) for c in kept]
    rejected = [r for r in event.rejected if r.path not in t.run.retired]
    finished = {c.path for c in good}
    t.set(
        rejected=tuple(
            r
            for r in {r.path: r for r in (*t.run.rejected, *rejected)}.values()
            if r.path not in finished
        ),
        incomplete_checkpoints=tuple(
            r for r in t.run.incomplete_checkpoints if r.path not in finished
        ),
    )
    if attempt and attempt.tainted_from is not None:
        tainted = [c for c in new if c.attempt == number and c.step >= attempt.tainted_from]
        for checkpoint in tainted:
            new.remove(checkpoint)
            why = f"trained from what is in quarantine since step {attempt.tainted_from}"
            retire(t, checkpoint, why, quarantined=True)
    if t.run.phase is Phase.TRIAGE:
        _reject_in_doubt(t, event.found)
    t.set(lineage=tuple(sorted((*kept, *new), key=lambda c: c.step)))
    if t.run.phase is Phase.TRIAGE and attempt and all_ranks_confirmed_stopped(t.run, attempt):
        left = [
            Checkpoint(step=r.step, path=r.path, attempt=number, verified_at=0.0)
            for r in rejected
            if r.incomplete and r.path.startswith(f"{attempt.save_dir}/")
        ]
        t.set(incomplete_checkpoints=(*t.run.incomplete_checkpoints, *left))
    return new


def last_finite(run: Run) -> int:
    """The last step of the attempt whose loss is known to have been finite.

    What it resumed from counts as such: nothing else is known of it.
    """
    attempt = run.attempt
    first = attempt.resume.step if attempt and attempt.resume else 0
    return max(first, (attempt.finite_step or 0) if attempt else 0)


def may_hold_nan(run: Run, one: Checkpoint) -> bool:
    """Whether it was saved after the last step that is known to be finite, and NaN came then.

    A trainer looks at its loss at the steps that it logs, so what it saved in between may hold NaN
    (TorchTitan 0.3.0 with log_freq 5 and interval 2 saved such at 2 and 4, and raised at 5).
    """
    attempt = run.attempt
    return (
        attempt is not None
        and attempt.loss_not_finite_since is not None
        and attempt.save_dir is not None
        and one.path.startswith(f"{attempt.save_dir}/")
        and one.step > last_finite(run)
    )


def _reject_in_doubt(t: Transition, found: tuple[Checkpoint, ...]) -> None:
    """Now that the attempt is over, its loss won't be finite again."""
    step = last_finite(t.run)
    why = f"saved after step {step}, the last one whose loss is known to be finite"
    doubtful = [
        Rejected(step=c.step, path=c.path, why=why) for c in found if may_hold_nan(t.run, c)
    ]
    by_path = {r.path: r for r in (*t.run.rejected, *doubtful)}
    t.set(rejected=tuple(by_path.values()))


def counts(run: Run, one: Checkpoint) -> bool:
    """Whether a checkpoint that is verified now is, or becomes, part of the lineage.

    Of an earlier attempt only what its later ones in the lineage came of. What was rejected stays
    so, unless it was unfinished or unreadable: a client of NFS may show a finished save as that.
    """
    if one.path in run.retired or may_hold_nan(run, one):
        return False
    if any(r.path == one.path and r.final for r in run.rejected):
        return False
    if any(c.path == one.path for c in run.lineage):
        return True
    if any(i.attempt == one.attempt and i.cause is Cause.WRONG_STEP for i in run.incidents):
        return False  # saved by ranks that were not where they should have been
    if one.attempt == (run.attempt.number if run.attempt else 0):
        return True
    return any(c.attempt == one.attempt > 0 and c.step > one.step for c in run.lineage)


def all_ranks_confirmed_stopped(run: Run, attempt: Attempt) -> bool:
    """Whether every node has confirmed that no rank is left that could still write."""
    return set(attempt.confirmed_stopped) >= set(attempt.slots) and all(
        name in run.pool and run.pool[name].state is NodeState.READY for name in attempt.slots
    )


def retire(t: Transition, what: Checkpoint, why: str, *, quarantined: bool = False) -> None:
    """Take a checkpoint out of the lineage, and have it moved or deleted.

    One from outside of the run's own directories only leaves the lineage.
    """
    home = t.run.spec.checkpoint_dir
    ours = home is not None and saved_by_this_run(t.run, what)
    one = Retired(
        step=what.step, path=what.path, at=t.at, why=why, quarantined=quarantined, done=not ours
    )
    t.set(
        retired={**t.run.retired, what.path: one},
        lineage=tuple(c for c in t.run.lineage if c.path != what.path),
    )
    if ours and home is not None:
        path = what.path
        if quarantined:
            t.emit(act.Quarantine(key=names.quarantine_key(path), path=path, home=home))
        else:
            t.emit(act.Discard(key=names.discard_key(path), path=path, home=home))


def saved_by_this_run(run: Run, one: Checkpoint) -> bool:
    """Whether an attempt of this run saved it, where the run saves now."""
    return one.attempt > 0 and one.path.startswith(f"{run.spec.checkpoint_dir}/a")


def retain(t: Transition) -> None:
    """Give up checkpoints beyond the newest ones, and what unfinished ones have left.

    Never the newest; never the one that the attempt resumed from, until the attempt itself has a
    newer one; never one that was there before the run.
    """
    spec, attempt = t.run.spec, t.run.attempt
    mine = [c for c in t.run.lineage if saved_by_this_run(t.run, c)]
    if not spec.keep or attempt is None or not mine:
        return
    first = attempt.resume
    saved = any(c.attempt == attempt.number for c in mine)
    for one in mine[: -spec.keep]:
        milestone = spec.keep_every and one.step % spec.keep_every == 0
        if not milestone and (saved or first is None or one.path != first.path):
            retire(t, one, f"beyond the newest {spec.keep}")
    for rest in t.run.incomplete_checkpoints:
        if rest.step <= mine[-1].step:
            retire(t, rest, "was never finished")
    t.set(
        incomplete_checkpoints=tuple(
            r for r in t.run.incomplete_checkpoints if r.path not in t.run.retired
        )
    )


@handles(ev.CheckpointRetired)
def checkpoint_retired(t: Transition, event: ev.CheckpointRetired) -> None:
    one = t.run.retired.get(event.path)
    if one is not None:
        now = replace(one, done=not event.problem, problem=event.problem)
        t.set(retired={**t.run.retired, event.path: now})
