"""What ranks wrote, for `superv logs`: which attempt and rank is meant, and where it is read."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import click

from supervisor.core.errors import TransientError, UserError
from supervisor.core.types import ENDED, Phase
from supervisor.engine import control
from supervisor.engine.spawn import mute_fix
from supervisor.host.terminal import printable_lines, raw
from supervisor.run import kept_logs
from supervisor.run.folder import RunDir
from supervisor.run.kept_logs import Index, KeptRank

LINES = 20  # of each rank, where all are shown
SEARCHED = 64 * 1024  # bytes at the end of a running rank's log that are searched
# Phases in which the ranks of the newest attempt run, or are about to.
_BUSY = frozenset({Phase.CHECKING, Phase.STARTING, Phase.RUNNING, Phase.STOPPING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a person asked for; None: whatever is most telling."""

    rank: int | None
    attempt: int | None
    every: bool
    pattern: re.Pattern[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where the run stands."""

    engine: bool  # one answers
    phase: Phase
    attempt: int | None  # the newest
    kept: dict[int, Index]  # by attempt

    @property
    def over(self) -> bool:
        """Whether the newest attempt has ended, and what its ranks wrote is kept."""
        return self.phase not in _BUSY and self.attempt in self.kept


@dataclass(frozen=True, slots=True, kw_only=True)
class _Log:
    """What a rank wrote, or why it can't be had."""

    attempt: int
    rank: int
    node: str
    data: str
    missing: str = ""


def compiled(pattern: str | None) -> re.Pattern[str] | None:
    """Raises UserError where it is no regular expression."""
    if pattern is None:
        return None
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"--grep {pattern!r}: {error}; a regular expression as Python's re takes it: a "
            "backslash before ( [ . * + ? takes them as they are"
        ) from None


def standing(run: RunDir) -> Standing:
    """Raises UserError for a mute engine and damaged logs, LostJournalError for a lost journal."""
    kept = dict(kept_logs.indexes(run.logs))
    try:
        for told in control.ask(run.socket, {"do": "status"}):
            phase, attempt = Phase(told["phase"]), told["attempt"]
            return Standing(engine=True, phase=phase, attempt=attempt, kept=kept)
    except control.NoEngineError:
        pass
    except TransientError as error:
        raise UserError(f"run {run.path.name}: {error}; {mute_fix(run)}") from None
    state = run.load()
    number = state.attempt.number if state.attempt else None
    return Standing(engine=False, phase=state.phase, attempt=number, kept=kept)


def put(text: str) -> None:
    """On a terminal without what steers it, else as it is."""
    if sys.stdout.isatty():
        click.echo(printable_lines(text), nl=False)
    else:
        click.echo(text, nl=False, file=raw(sys.stdout))


def show_one(run: RunDir, wanted: Wanted, state: Standing, *, size: int | None) -> None:
    """One rank's log of an attempt that has ended. Raises UserError, NoEngineError."""
    index = state.kept[_attempt(run, wanted, state)]
    rank = wanted.rank if wanted.rank is not None else next(iter(index.first), 0)
    one = _rank(run, index, rank)
    click.echo(f"superv: {_headline(run, index, rank, one)}", err=True)
    data = _at_its_node(run, index.attempt, rank, one) if state.engine and not one.whole else None
    text = data if data is not None else _kept(run, index.attempt, rank)
    if not text and not one.missing:
        click.echo(f"superv: rank {rank} wrote nothing", err=True)
    put(text if size is None else _end(text, size))


def _headline(run: RunDir, index: Index, rank: int, one: KeptRank) -> str:
    first = ", the first that ended" if index.first[:1] == (rank,) else ""
    who = f"{one.how}{first}" if one.how else f"rank {rank} on {one.node}"
    part = "" if one.whole or one.missing else f"; the last {one.bytes} bytes of its log"
    lost = f"; the rest could not be had: {one.missing}" if one.missing else ""
    others = sum(1 for other in index.ranks.values() if other.missing and other is not one)
    more = f"; logs of {others} other ranks could not be had" if others else ""
    return f"attempt {index.attempt}: {who}{part}{lost}{more}"


def _attempt(run: RunDir, wanted: Wanted, state: Standing) -> int:
    """The attempt that is meant. Raises UserError where there is no such one."""
    name, newest = run.path.name, state.attempt
    if newest is None:
        raise UserError(f"run {name} has started no rank yet: `superv status {name}` says why")
    kept = ", ".join(map(str, state.kept)) or "none"
    if wanted.attempt is None:
        if not state.kept:
            if state.phase not in ENDED:
                raise control.NoEngineError
            raise _nothing_kept(run, newest)
        return max(state.kept)
    if wanted.attempt > newest:
        raise UserError(
            f"run {name} has no attempt {wanted.attempt}; the newest is {newest}, and logs are "
            f"kept of: {kept}"
        )
    if wanted.attempt not in state.kept:
        raise UserError(
            f"run {name}: no logs are kept of attempt {wanted.attempt}; the newest attempt is "
            f"{newest}, and logs are kept of: {kept}"
        )
    return wanted.attempt


def _nothing_kept(run: RunDir, newest: int) -> UserError:
    name = run.path.name
    return UserError(
        f"run {name}: nothing is kept of what its ranks wrote (attempt {newest} was the newest): "
        "an engine of a superv before this one ended it, or its nodes could not be reached; "
        f"`superv status {name} --json` has last lines under `evidence`"
    )


def _rank(run: RunDir, index: Index, rank: int) -> KeptRank:
    try:
        return index.ranks[rank]
    except KeyError:
        raise UserError(f"there is no rank {rank}; ranks are 0 to {max(index.ranks)}") from None


def _kept(run: RunDir, attempt: int, rank: int) -> str:
    try:
        data = kept_logs.log_of(run.logs, attempt, rank).read_bytes()
    except FileNotFoundError:
        return ""
    return data.decode(errors="replace")


def _at_its_node(run: RunDir, attempt: int, rank: int, one: KeptRank) -> str | None:
    """The whole log, where the node has it still; None where it can't be asked."""
    request = {"do": "logs", "rank": rank, "attempt": attempt, "node": one.node}
    try:
        found = control.ask(run.socket, {**request, "offset": 0, "follow": False}, stream=True)
        return "".join(answer["data"] for answer in found)
    except (control.NoEngineError, TransientError, UserError):
        return None


def _end(text: str, size: int) -> str:
    data = text.encode()
    return data[max(0, len(data) - size) :].decode(errors="replace")


# --- many -----------------------------------------------------------------------------------------


def show_many(
    run: RunDir, wanted: Wanted, state: Standing, *, live: bool, size: int | None
) -> None:
    """Lines of many ranks, each behind its attempt, rank and node. Raises UserError.

    Exit code 1 where a pattern is found nowhere.
    """
    found, lost, looked = 0, dict[str, set[str]](), 0
    for log in _logs(run, wanted, state, live=live, size=size):
        looked += 1
        if log.missing:
            lost.setdefault(log.missing, set()).add(log.node)
        head = f"a{log.attempt} r{log.rank} {log.node}: "
        for line in _lines(log.data, wanted, size):
            found += 1
            put(f"{head}{line}\n")
    from supervisor.core.nodeset import compress

    for why, nodes in lost.items():
        click.echo(f"superv: could not be had: {compress(nodes)}: {why}", err=True)
    if wanted.pattern is None and not found and not lost and size != 0:
        click.echo(f"superv: none of {looked} ranks has written anything", err=True)
    if wanted.pattern is not None and not found:
        click.echo(f"superv: found in none of {looked} logs: {wanted.pattern.pattern}", err=True)
        raise click.exceptions.Exit(1)


def _lines(data: str, wanted: Wanted, size: int | None) -> list[str]:
    lines = [line for line in re.split(r"[\r\n]+", data) if line]
    if wanted.pattern is not None:
        return [line for line in lines if wanted.pattern.search(line)]
    return lines if size is not None else lines[-LINES:]


def _logs(
    run: RunDir, wanted: Wanted, state: Standing, *, live: bool, size: int | None
) -> Iterator[_Log]:
    """Those that are meant, the oldest attempt first."""
    if wanted.attempt is not None and not live:
        attempts = [_attempt(run, wanted, state)]
    elif wanted.pattern is not None and wanted.attempt is None:
        attempts = list(state.kept)
    else:
        attempts = [] if live else [_attempt(run, wanted, state)]
    if not attempts and not live:
        _attempt(run, wanted, state)  # raises
    for number in attempts:
        index = state.kept[number]
        ranks = list(index.ranks) if wanted.rank is None else [wanted.rank]
        for rank in ranks:
            one = _rank(run, index, rank)
            text = _kept(run, number, rank)
            yield _Log(
                attempt=number,
                rank=rank,
                node=one.node,
                data=text if size is None else _end(text, size),
                missing=one.missing,
            )
    if live and state.attempt is not None and state.attempt not in attempts:
        yield from _running(run, wanted, state.attempt, size or SEARCHED)


def _running(run: RunDir, wanted: Wanted, attempt: int, size: int) -> Iterator[_Log]:
    """The ends of the logs of ranks that run. Raises NoEngineError, UserError."""
    request = {"do": "tails", "rank": wanted.rank, "size": size}
    for one in control.ask(run.socket, request, stream=True):
        yield _Log(
            attempt=attempt,
            rank=one["rank"],
            node=one["node"],
            data=one["data"],
            missing=one["missing"],
        )
