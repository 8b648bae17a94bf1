"""What superv never does, as code: the list of docs/invariants.md, and who holds a step to it.

`violations(before, event, run, actions)` looks at one step. The engine's form (`whole=False`) looks
at what the step changed, so that its cost does not grow with the nodes; tests look at everything.
`supervisor.core.refusal` says what becomes of a step that would break one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from supervisor.core import events as ev
from supervisor.core import rank_invariants as of_ranks
from supervisor.core import run_invariants as of_run
from supervisor.core.actions import Action
from supervisor.core.step import Breach, Check, Step
from supervisor.core.types import (
    Run,
    Violation,
)


@dataclass(frozen=True, slots=True)
class Invariant:
    """One entry of the list "What it never does" of docs/invariants.md."""

    sentence: str  # as it stands there
    check: Check
    undo: bool = False  # the step is not taken, rather than an action of it left out


INVARIANTS: dict[int, Invariant] = {
    1: Invariant(
        "Stop ranks whose steps advance, but for a person, a rank that ended, a node that is lost "
        "or left, a wrong resumed step, the end of the allocation.",
        of_ranks.progress,
        undo=True,
    ),
    2: Invariant(
        'Take "unknown" for healthy or failed: a query that fails concludes nothing, and a check '
        "that could not measure takes no node away and gives none back.",
        of_run.unknown,
    ),
    3: Invariant(
        "Let two attempts' checkpoints count: attempt numbers only grow, each attempt has a "
        "directory, a port and a marker of its own, and only the journal's lineage says which "
        "checkpoints are the run's. Of an earlier attempt it takes in only what its later ones "
        "came of.",
        of_ranks.attempts,
    ),
    4: Invariant(
        "Resume an unverified checkpoint, or begin again at step 0 when a verified one existed.",
        of_ranks.resume,
    ),
    5: Invariant(
        "Blame on a cascade: the first rank exit names nobody; the second in a row from the same "
        "node, with no verified checkpoint in between, does. Three nodes gone within a minute are "
        "a shared cause. Nobody is excluded without a verdict that names the node.",
        of_run.blame,
    ),
    6: Invariant(
        "Restart forever: a cause has `policy.restarts_without_progress` tries between new "
        "verified checkpoints, then the run is HELD with a reason. What nodes and Slurm do to a "
        "run that has trained holds it never: its restarts pause longer and longer, up to 5 min.",
        of_run.budgets,
    ),
    7: Invariant(
        "Wait without a deadline for a process, a mount or a command. What it does wait for "
        "(nodes, Slurm, storage) it names.",
        of_run.waiting,
    ),
    8: Invariant(
        "Undo a person: a cancel that superv did not journal ends the run as STOPPED, and a node "
        "that people exclude takes no slot.",
        of_run.people,
    ),
    9: Invariant(
        "Act before the journal has it on disk. Actions have keys, each for one action; done again "
        "they look first.",
        of_run.unique_keys,
    ),
    10: Invariant(
        "Start ranks on a node that is not ready, not free of older ranks or fails its checks, or "
        "a slot twice, or while another attempt's ranks are wanted.",
        of_ranks.starts,
    ),
    11: Invariant(
        "Order anything for a run that has ended, but that its logs are kept, its nodes "
        "given back and its checkpoints go where they were sent.",
        of_run.ended,
    ),
    12: Invariant(
        "Delete the newest verified checkpoint, the one that the attempt resumed from before it "
        "has its own, or anything outside of the attempts' directories.",
        of_ranks.retention,
    ),
    13: Invariant("Go from a phase to one that it does not lead to.", of_run.phases),
    14: Invariant(
        "Act without saying why: each incident has evidence, each verdict and exclusion a reason.",
        of_run.explained,
    ),
    15: Invariant(
        "Conclude anything from silence while this engine is cut off: no deadline that waits for "
        "agents passes, no node is given up or excluded for it, nothing is relaunched.",
        of_run.cut_off,
        undo=True,
    ),
}


def violations(
    before: Run, event: ev.Event, run: Run, actions: Sequence[Action], *, whole: bool = True
) -> tuple[Violation, ...]:
    """What is wrong with one step, in the order of the list; empty where nothing is.

    A check that raises is a violation of its own invariant: it must not end the engine.
    """
    s = Step(before, event, run, actions, whole)
    found: list[Violation] = []
    for number, invariant in INVARIANTS.items():
        try:
            for one in invariant.check(s):
                found.append(_violation(event, number, invariant, one))
        except Exception as error:
            what = Breach(f"the check failed: {type(error).__name__}: {error}", raised=True)
            found.append(_violation(event, number, invariant, what))
    return tuple(found)


def _violation(event: ev.Event, number: int, invariant: Invariant, one: Breach) -> Violation:
    return Violation(
        at=event.at,
        invariant=number,
        what=one.what,
        refused=one.refused,
        nodes=one.nodes,
        undone=invariant.undo and not one.raised,
    )
