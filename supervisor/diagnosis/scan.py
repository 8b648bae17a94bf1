"""Look through log files for signatures, fast: most lines are repeats of a few templates.

A piece of a file loses its digits in one call, and then has few different lines. Each of those is
held against the signatures' needles once; only lines of templates that hold one are read as text.
"""

from __future__ import annotations

import json
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice
from pathlib import Path

from healthchecks.sources import xid
from supervisor.checkpoints.metadata import BadError
from supervisor.core.sighting import JobShape, Sighting
from supervisor.core.step_lines import MAX_STEP, STEP, number
from supervisor.diagnosis.alone import LINES, AloneLine, Templates
from supervisor.diagnosis.flight_recorder import MAX_BYTES, RecordedStanding, rank_of, read
from supervisor.diagnosis.inputs import FoundLogs, JobLog, NotText, pieces
from supervisor.diagnosis.lines import (
    CONTINUED,
    LineHead,
    LineLabels,
    clean,
    head,
    kernel_line,
    labels,
    time_of,
    whole_record,
)
from supervisor.diagnosis.places import RankPlaces, collective
from supervisor.signatures import LogKind, Signature, Signatures, first

DIGITS = b"0123456789"
MAX_TEMPLATES = 300_000  # remembered at once
LOOKED_AT = 8192  # bytes of a template
SAMPLE = 300  # lines by which a file's labels are told
READ_OF_ONE = 5_000  # lines of one template that are read in one file, and …
READ_OF_ALL = 50_000  # … in all: ranks that flood say the same again
BACK = 60  # lines to look back for a time
_STEP_WORDS = (b"step", b"Step", b"iter", b"Iter", b"loss")
_MARKS = (b" nranks ", b"(local_rank: )", b"NCCL version ", b": Using ", b" OK", b"NVRM", b"SXid")
_STEP = re.compile(STEP)


@dataclass(slots=True)
class LogScan:
    """What was found in all files."""

    sightings: list[Sighting]
    shape: JobShape
    problems: list[str]
    files: int
    empty: int  # files of them
    bytes: int
    lines: int
    alone: tuple[AloneLine, ...]  # lines of one node only


@dataclass(slots=True)
class _Template:
    """What a line without its digits may hold."""

    signatures: tuple[Signature, ...]
    marked: bool
    read: int = 0  # lines, in all files


@dataclass(slots=True)
class _State:
    """One scan."""

    signatures: Signatures
    needles: tuple[tuple[bytes, tuple[Signature, ...]], ...]
    progress: Callable[[int, int], None]
    total: int
    year: int
    places: RankPlaces
    dull: set[bytes] = field(default_factory=set)
    told: dict[bytes, _Template] = field(default_factory=dict)
    found: dict[tuple[object, ...], Sighting] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    standings: list[tuple[JobLog, RecordedStanding]] = field(default_factory=list)
    templates: Templates = field(default_factory=Templates)
    read: int = 0
    empty: int = 0
    lines: int = 0
    order: int = 0
    last_step: int | None = None
    last_step_at: float | None = None
    last_step_line: dict[str, int] = field(default_factory=dict)


def scan(
    found: FoundLogs,
    signatures: Signatures,
    *,
    nodes: tuple[str, ...] = (),
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> LogScan:
    """Look through the files. What can't be read is in `problems`, one line each."""
    state = _State(
        signatures=signatures,
        needles=tuple((n.encode(), ones) for n, ones in signatures.by_needle.items()),
        progress=progress,
        total=found.bytes,
        year=0,
        places=RankPlaces(nodes),
        problems=list(found.problems),
    )
    logs = [one for one in found.files if not _recorder(one, state)]
    hows = {one.path: _sampled(one, state) for one in logs}
    if not state.year:
        newest = max((one.mtime for one in found.files), default=0.0)
        state.year = time.gmtime(newest).tm_year
    _recorded(state)
    for one in logs:
        if (how := hows[one.path]) is not None:
            _file(one, how, state)
    sightings = state.places.settle(list(state.found.values()))
    shape = state.places.shape(
        last_step=state.last_step,
        last_step_at=state.last_step_at,
        last_step_line=state.last_step_line,
    )
    return LogScan(
        sightings=sightings,
        shape=shape,
        problems=state.problems,
        files=len(found.files),
        empty=state.empty,
        bytes=state.read,
        lines=state.lines,
        alone=state.templates.alone(lambda rank: shape.node_of.get(rank, "")),
    )


def _recorder(one: JobLog, state: _State) -> bool:
    """Take in a dump of torch's flight recorder; False where the file is none."""
    if rank_of(one.path) is None or one.size > MAX_BYTES:
        return False
    try:
        standings = read(one.path, Path(one.path).read_bytes())
    except OSError:
        return False  # said when it is read as a log
    except BadError as error:
        state.problems.append(f"{one.path}: a flight recorder's dump: {error}")
        return True
    if standings is None:
        return False
    state.standings += [(one, standing) for standing in standings]
    return True


def _recorded(state: _State) -> None:
    """Where ranks stood, if any of them waited."""
    if not any(standing.waits_in for _, standing in state.standings):
        return
    for file, standing in state.standings:
        signature, match = state.signatures.find(standing.text(), LogKind.RECORDER)
        if signature is None or match is None:
            continue
        facts = {"pg": standing.group, "last": str(standing.enqueued)}
        if standing.waits_in:
            facts |= {"seq": str(standing.number), "op": standing.waits_in}
        state.order += 1
        sighting = Sighting(
            signature=signature,
            source=file.path,
            line=1,
            text=standing.text(),
            order=state.order,
            rank=standing.rank,
            node=file.node,
            facts=facts,
        )
        key = (signature.id, file.path, standing.group)
        state.found[key] = state.places.label(sighting, LineHead(message=""), file)


def _sampled(one: JobLog, state: _State) -> LineLabels | None:
    """How the file's lines begin; None, and one line that says why, where it can't be read."""
    try:
        piece = next(iter(pieces(one)), b"")
    except NotText as error:
        state.problems.append(f"{one.path}: {error}; passed over")
        return None
    except OSError as error:
        state.problems.append(f"{one.path}: {error.strerror or error}")
        return None
    state.empty += not piece
    sample = [clean(raw) for raw in islice(_one_end(piece[: SAMPLE * 400]).split(b"\n"), SAMPLE)]
    if not state.year and (
        found := re.search(r"\b(20\d\d)-\d\d-\d\d[ T_]\d\d:", "\n".join(sample))
    ):
        state.year = int(found[1])
    how = labels(sample)
    return replace(how, kernel=how.kernel or (one.kernel and any(map(kernel_line, sample))))


def _one_end(piece: bytes) -> bytes:
    """With one kind of line ends: progress bars have their own."""
    if b"\r" not in piece:
        return piece
    return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _file(one: JobLog, how: LineLabels, state: _State) -> None:
    if one.path.endswith("error.json"):
        _error_file(one, state)
        return
    reader = _Reader(one, how, state)
    try:
        for piece in pieces(one):
            reader.piece(piece)
            state.read += len(piece)
            state.progress(state.read, max(state.total, state.read))
    except (NotText, OSError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        state.problems.append(f"{one.path}: {said}; read up to line {reader.before}")
    reader.compare()
    state.lines += reader.before
    state.places.file_ended(one, how, wrote=reader.before > 0, node=reader.kernel_node)


def _error_file(one: JobLog, state: _State) -> None:
    """torchelastic's error.json: a message, the stack, and when."""
    try:
        text = b"".join(pieces(one)).decode(errors="replace")
        message = json.loads(text)["message"]
        extra = message.get("extraInfo", {}) if isinstance(message, dict) else {}
        body = message.get("message", "") if isinstance(message, dict) else str(message)
        stack = str(extra.get("py_callstack", ""))
        at = extra.get("timestamp")
        lines = [*stack.splitlines(), *str(body).splitlines()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split())[:200]
        state.problems.append(f"{one.path}: not torchelastic's error.json ({said})")
        return
    reader = _Reader(one, LineLabels(), state)
    reader.last_time = float(str(at)) if str(at).isdecimal() else None
    reader.piece("\n".join(lines).encode() + b"\n")
    state.places.file_ended(one, LineLabels(), wrote=True, node="")


class _Reader:
    """One file, piece by piece."""

    def __init__(self, one: JobLog, how: LineLabels, state: _State) -> None:
        self._one = one
        self._how = how
        self._state = state
        self._counts: dict[bytes, int] = {}
        self.before = 0  # lines read
        self.last_time: float | None = None
        self.kernel_node = ""
        self._last: tuple[bytes, ...] = ()  # lines
        self._times: dict[int, float | None] = {}  # of lines of this piece, as far as asked for

    def compare(self) -> None:
        """Have the last lines compared with other ranks'."""
        if self._how.kernel:
            return
        begin = self.before - len(self._last)
        for line, raw in enumerate(self._last, begin + 1):
            found = head(clean(raw), self._how)
            rank = self._one.rank if found.rank is None else found.rank
            rank = found.task if rank is None else rank
            node = found.node or self._one.node
            if found.message and (rank is not None or node):
                self._state.templates.add(rank, node, self._one.path, line, found.message)

    def piece(self, data: bytes) -> None:
        """Take in whole lines."""
        data = _one_end(data)
        self._times = {}
        lines, temps = data.split(b"\n"), data.translate(None, DIGITS).split(b"\n")
        if not lines[-1]:
            lines.pop()
            temps.pop()
        state = self._state
        different = set(temps)
        _classify([t for t in different - state.dull if t not in state.told], state)
        if not state.told.keys().isdisjoint(different):
            self._told_lines(lines, temps)
        self._last_step(lines, temps)
        self.last_time = self._time_before(lines, len(lines)) or self.last_time
        self.before += len(lines)
        self._last = (*self._last[-LINES:], *lines[-LINES:])[-LINES:]

    def _told_lines(self, lines: list[bytes], temps: list[bytes]) -> None:
        told, counts = self._state.told, self._counts
        blocks: dict[int, LineHead] = {}
        for index, template in enumerate(temps):
            what = told.get(template)
            if what is None:
                continue
            seen = counts[template] = counts.get(template, 0) + 1
            what.read += 1
            if seen > READ_OF_ONE or (what.read > READ_OF_ALL and seen > 1):
                continue
            text = clean(lines[index])
            if what.marked and not self._how.kernel:
                at = self._state.places.mark(text, lines, index, self._how)
                if at is not None:
                    blocks.update(at)
            if self._how.kernel:
                self._kernel(text, what, lines, index)
            elif what.signatures:
                self._job(text, what, lines, index, blocks.get(index))

    def _job(
        self, text: str, what: _Template, lines: list[bytes], index: int, block: LineHead | None
    ) -> None:
        found = head(text, self._how)
        signature, match = first(what.signatures, found.message, LogKind.JOB)
        if signature is None or match is None:
            self._kernel(text, what, lines, index)  # somebody's dmesg in a job's output
            return
        groups = {key.rstrip("23"): value for key, value in match.groupdict().items() if value}
        rank = found.rank
        if "rank" in groups and rank is None:
            rank = int(groups["rank"])
        if block is not None and rank is None:
            rank = block.rank
        node = groups.get("node") or found.node or (block.node if block else "")
        at, exact = self._time(text, lines, index)
        self._add(
            Sighting(
                signature=signature,
                source=self._one.path,
                line=self.before + index + 1,
                text=found.message[:400],
                order=0,
                node=node or self._one.node,
                rank=self._one.rank if rank is None else rank,
                gpu=found.gpu,
                peer=groups.get("peer", ""),
                at=at,
                exact=exact,
                names_itself="node" in groups or bool(found.node),
                facts=collective(text),
            ),
            found,
        )

    def _kernel(self, text: str, what: _Template, lines: list[bytes], index: int) -> None:
        record = kernel_line(text)
        if record is None:
            return
        node = record.node or self._one.node
        self.kernel_node = self.kernel_node or node
        event = None
        if "NVRM" in record.text or "SXid" in record.text:
            event = xid.parse(whole_record(record.text, lines[index + 1 : index + 1 + CONTINUED]))
        if event is not None:
            said = f"{event.xid.act.value}: {event.name}: {event.xid.meaning}"
            signature, match = self._state.signatures.find(said, LogKind.XID)
        else:
            signature, match = first(what.signatures, record.text, LogKind.KERNEL)
            if record.text.startswith("nfs: server ") and record.text.endswith(" OK"):
                self._clear(record.text.split()[2], node)
        if signature is None:
            return
        peer = (match.groupdict().get("peer") or "") if match else ""
        self._add(
            Sighting(
                signature=signature,
                source=self._one.path,
                line=self.before + index + 1,
                text=record.text[:400],
                order=0,
                node=node,
                gpu=event.device if event else "",
                peer=peer,
                at=self._time(text, lines, index)[0] if record.uptime is None else None,
                names_itself=bool(node),
            ),
            LineHead(message=record.text),
        )

    def _clear(self, server: str, node: str) -> None:
        """A mount answers again: what was said of it on that node is over."""
        for key, one in self._state.found.items():
            if one.kernel and one.node == node and one.peer == server:
                self._state.found[key] = replace(one, cleared=True)

    def _add(self, one: Sighting, found: LineHead) -> None:
        state = self._state
        one = state.places.label(one, found, self._one)
        key = (
            one.signature.id,
            one.source,
            one.node,
            one.rank,
            one.gpu,
            one.peer,
            one.facts.get("pg"),
            one.facts.get("seq"),
            one.facts.get("last"),
            found.task,
        )
        old = state.found.get(key)
        if old is not None:
            cleared = old.cleared and not one.kernel
            state.found[key] = replace(old, count=old.count + 1, cleared=cleared)
            return
        state.order += 1
        state.found[key] = replace(one, order=state.order)

    def _time(self, text: str, lines: list[bytes], index: int) -> tuple[float | None, bool]:
        """When a line was written, and whether it says so itself: a line before it may."""
        own = time_of(text, self._state.year)
        if own is not None:
            return own, True
        return self._time_before(lines, index) or self.last_time, False

    def _time_before(self, lines: list[bytes], index: int) -> float | None:
        """The time of the nearest line before; each line of a piece is read for it once."""
        for before in range(index - 1, max(0, index - BACK) - 1, -1):
            if before not in self._times:
                self._times[before] = time_of(clean(lines[before][:256]), self._state.year)
            if (at := self._times[before]) is not None:
                return at
        return None

    def _last_step(self, lines: list[bytes], temps: list[bytes]) -> None:
        """The newest step of this piece: what was said before it, training survived."""
        if self._how.kernel:
            return
        tried = 0
        for index in range(len(temps) - 1, -1, -1):
            if not any(word in temps[index][:400] for word in _STEP_WORDS):
                continue
            text = clean(lines[index])
            match = _STEP.search(head(text, self._how).message)
            tried += 1
            if match and (step := number(match["step"])) is not None and step < MAX_STEP:
                self._step(step, index, lines, text)
                return
            if tried > 200:
                return

    def _step(self, step: int, index: int, lines: list[bytes], text: str) -> None:
        state = self._state
        state.last_step_line[self._one.path] = self.before + index + 1
        at, _ = self._time(text, lines, index)
        if state.last_step is None or step >= state.last_step:
            state.last_step = step
        if at is not None and (state.last_step_at is None or at > state.last_step_at):
            state.last_step_at = at


def _classify(templates: list[bytes], state: _State) -> None:
    """Find needles in new templates: all in one text, so that each needle is sought once."""
    if not templates:
        return
    if len(state.dull) + len(state.told) > MAX_TEMPLATES:
        state.dull.clear()
    texts = [_plain(template) for template in templates]
    starts = list(accumulate((len(text) + 1 for text in texts), initial=0))
    blob = b"\n".join(texts)
    hits: dict[int, dict[str, Signature]] = {}
    for needle, ones in state.needles:
        for index in _where(needle, blob, starts):
            hits.setdefault(index, {}).update((one.id, one) for one in ones)
    marked = {index for mark in _MARKS for index in _where(mark, blob, starts)}
    for index, template in enumerate(templates):
        if index in hits or index in marked:
            found = tuple(hits.get(index, {}).values())
            state.told[template] = _Template(found, index in marked)
        else:
            state.dull.add(template)


def _plain(template: bytes) -> bytes:
    """Without colours, cut to what is looked at."""
    text = template[:LOOKED_AT]
    return re.sub(rb"\x1b\[[;?]*[A-Za-z]", b"", text) if b"\x1b" in text else text


def _where(needle: bytes, blob: bytes, starts: list[int]) -> Iterator[int]:
    """The texts of which a blob is made that hold a needle, by number."""
    at = blob.find(needle)
    while at >= 0:
        index = bisect_right(starts, at) - 1
        yield index
        at = blob.find(needle, starts[index + 1])
