"""Simulated worlds, one seed after the other: `python -m supervisor.simulate SEED`."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterable

from supervisor.simulate.injections import drawables
from supervisor.simulate.seed_plan import SeedPlan, drawn
from supervisor.simulate.shrink import shrunk
from supervisor.simulate.world import Outcome, play

TOLD_EVERY = 100  # seeds of an endless search


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m supervisor.simulate", description=__doc__)
    parser.add_argument("first", type=int, nargs="?", default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="how many; 0: no end")
    parser.add_argument("--tell", action="store_true", help="print what happens in each")
    parser.add_argument(
        "--shrink", action="store_true", help="print the shortest story that fails as a seed does"
    )
    args = parser.parse_args(argv)
    last = range(args.first, args.first + args.seeds)
    tally = SeedTally()
    for seed in last if args.seeds else itertools.count(args.first):
        outcome = play(drawn(seed, drawables()), tell=args.tell)
        tally.add(outcome)
        say(outcome.timeline)
        if outcome.wrong:
            say([f"seed {seed}: {outcome.wrong[0]}"])
            if args.shrink:
                say(story(outcome))
        if not args.seeds and not seed % TOLD_EVERY:
            say([tally.text()])
    say([tally.text()])
    return 1 if tally.wrong else 0


def story(outcome: Outcome) -> Iterable[str]:
    """A failed seed as a short story: the plan that is left of it, and its timeline."""

    def fails(plan: SeedPlan) -> bool:
        wrong = play(plan).wrong
        return bool(wrong) and sort_of(wrong[0]) == sort_of(outcome.wrong[0])

    plan = shrunk(outcome.plan, fails)
    yield "the same, shorter:"
    yield f"  {plan}"
    yield from play(plan, tell=True).timeline


def sort_of(wrong: str) -> str:
    """What kind of thing is wrong: its words without names and numbers."""
    return " ".join(word for word in wrong.split()[:12] if word.isalpha())


def say(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class SeedTally:
    """What all worlds so far come to."""

    def __init__(self) -> None:
        self._began = time.process_time()
        self.seeds = self.wrong = self.events = self.messages = 0
        self.simulated_s = self.played_s = 0.0

    def add(self, one: Outcome) -> None:
        self.seeds += 1
        self.wrong += bool(one.wrong)
        self.events += one.events
        self.messages += one.messages
        self.simulated_s += one.simulated_s
        self.played_s += one.played_s

    def text(self) -> str:
        cpu = time.process_time() - self._began
        days = self.simulated_s / 86_400 / max(cpu, 1e-9)
        return (
            f"simulated: {self.seeds} seeds, {self.simulated_s / 3600:.1f} h "
            f"({self.played_s / 3600:.1f} h without quiet spells), {self.events} events, "
            f"{self.messages} messages; {cpu:.1f} s of CPU, {days:.2f} days a CPU second; "
            f"{self.wrong} wrong"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
