"""List and verify checkpoints of torch.distributed.checkpoint (DCP), without torch.

A DCP checkpoint is a directory with a `.metadata`, written last, and the shard files that it names.
It may lie where others can write: names are looked up in open directories, and what belongs to
another user does not count (`supervisor.checkpoints.folders`).

Storage may hang and metadata kill its reader, so callers let a child do it
(`supervisor.checkpoints.storage`). For that child's sake this module imports little.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from supervisor.checkpoints import folders, numbers
from supervisor.checkpoints.folders import Folder, RefusedError
from supervisor.checkpoints.metadata import MAX_METADATA, BadError, Contents, limits, parse
from supervisor.checkpoints.shards import (
    MAX_PROBES,
    READ_AT_ONCE,
    Whole,
    check_shard,
    read_shard,
)
from supervisor.core.names import attempt_of, step_of

SCHEMA = 1  # of a CheckpointScan as JSON
NO_DIRECTORY = "no such directory"
REQUIRED = ("model", "optimizer", "lr_scheduler", "train_state", "dataloader")  # TorchTitan's

MAX_REFUSED = 20  # another user's folders that are shown, the newest
MAX_SIZE = 2**62  # bytes: sums of sparse files could be more than a message's integers hold
YEAR_9999 = 253_402_300_799.0  # Unix time in s; a file's owner may set any

# What a name leads to, and not the storage's mood: looking again would say the same.
_LASTING = {errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ENXIO}


class CheckpointState(StrEnum):
    """What is known of a checkpoint. Only VERIFIED may be resumed from."""

    VERIFIED = "verified"
    INCOMPLETE = "incomplete"  # no .metadata: still being written, or never finished
    UNUSABLE = "unusable"  # damaged, or not a full training state
    FOREIGN = "foreign"  # another user put it there: it counts for nothing
    UNKNOWN = "unknown"  # storage did not let us look


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointReport:
    """One checkpoint as it was found."""

    path: str
    step: int  # from the directory's name, step-N; -1 where it has another name
    state: CheckpointState
    reason: str  # one line of printable characters; empty when verified and all was compared
    bytes: int  # of the metadata and of the shards that it names, as far as they were looked at
    mtime: float  # Unix time in s of the metadata; of the newest change where there is none

    @property
    def verified(self) -> bool:
        return self.state is CheckpointState.VERIFIED


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointScan:
    """The checkpoints under a directory, highest step first."""

    directory: str
    exists: bool  # False: nothing has been saved there yet
    found: tuple[CheckpointReport, ...]
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What lies under a directory, not looked into; highest step first."""

    exists: bool
    paths: tuple[str, ...]  # of the checkpoints
    refused: tuple[CheckpointReport, ...]  # another user's: the newest, each with a reason


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardProgress:
    """How far a verification has come: what a later one of the same metadata need not repeat."""

    metadata: tuple[int, int]  # its size in bytes and its mtime in ns
    shards: int  # so many, in the order of their names, are good
    of: int  # so many there are


def report(
    path: str, state: CheckpointState, reason: str = "", *, size: int = 0, mtime: float = 0.0
) -> CheckpointReport:
    """A CheckpointReport whose reason is one printable line, whatever was found."""
    line = " ".join(reason[:1000].split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)[:400]
    step = step_of(Path(path).name)
    return CheckpointReport(
        path=path,
        step=-1 if step is None else step,
        state=state,
        reason=line,
        bytes=min(size, MAX_SIZE),
        mtime=min(max(mtime, 0.0), YEAR_9999),
    )


# --- verification


def _check_keys(contents: Contents, required: Sequence[str]) -> None:
    """Every required key is there. TorchTitan flattens its state: `optimizer.state.…`,
    `dataloader.dp_rank_0`, `train_state.step`; its model tensors have no prefix at all.
    """
    tops = {fqn.split(".", 1)[0] for fqn in contents.tensors | contents.objects}
    states = {*REQUIRED, *required} - {"model"}
    if any(fqn.split(".", 1)[0] not in states for fqn in contents.tensors):
        tops.add("model")
    missing = [key for key in required if key not in tops]
    if missing and tops.isdisjoint(states):
        raise BadError(f"model only: cannot resume training (no {', '.join(missing)})")
    if missing:
        raise BadError(f".metadata lacks {', '.join(missing)}")


def _open_metadata(folder: Folder) -> int | None:
    """A descriptor of the metadata; None where there is none.

    An NFS client may say for a minute that a file is missing which another node has just written.
    To open its directory by its path makes the client ask the server (close-to-open), and to list
    it drops what the client believes of its names.
    """
    with suppress(FileNotFoundError):
        return folder.open_file(".metadata")
    fd = os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not os.path.sameopenfile(fd, folder.fd) or ".metadata" not in os.listdir(fd):  # noqa: PTH208
            return None
    finally:
        os.close(fd)
    with suppress(FileNotFoundError):
        return folder.open_file(".metadata")
    return None


def _read_metadata(
    folder: Folder, alive: Callable[[], None]
) -> tuple[bytes, os.stat_result] | None:
    """The metadata's bytes and status; None where there is none."""
    if (fd := _open_metadata(folder)) is None:
        return None
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if status.st_size > MAX_METADATA:
            raise BadError(f".metadata has {status.st_size} bytes, {MAX_METADATA} at most")
        parts: list[bytes] = []
        while part := file.read(min(READ_AT_ONCE, MAX_METADATA - READ_AT_ONCE * len(parts))):
            parts.append(part)
            alive()
        return b"".join(parts), status


def _open(path: str) -> Folder:
    """A checkpoint's, or an attempt's folder. Its own name, and its attempt's, lead nowhere else.

    Raises FileNotFoundError, RefusedError, OSError.
    """
    there = Path(path)
    guarded: list[str] = []
    while (step_of(there.name) is not None and not guarded) or attempt_of(there.name) is not None:
        guarded.insert(0, there.name)
        there = there.parent
    with ExitStack() as opened:
        folder = opened.enter_context(folders.open_given(str(there)))
        for name in guarded:
            folder = opened.enter_context(folder.enter(name, our_links=True))
        return Folder(os.dup(folder.fd), path, folder.owners, folder.mount)


def verify(
    path: str,
    required: Sequence[str] = REQUIRED,
    *,
    deep: bool = False,
    before_parsing: Callable[[int], None] = lambda size: None,
    before_reading: Callable[[int], None] = lambda size: None,
    progress: Callable[[ShardProgress | None], None] = lambda progress: None,
    done: ShardProgress | None = None,
) -> CheckpointReport:
    """Look whether this directory is a checkpoint that training can be resumed from.

    Its metadata parses, its chunks fill their tensors, every item of it has a place, every shard is
    as long as the places need, sampled places look like what torch.save writes, a sample of what
    training changes is finite, the required keys are there, and all of it belongs to us, to root,
    or to the owner of the folder that it lies in. Bits that rotted inside a tensor are found by a
    `deep` look alone, which reads every byte and compares the checksums that torch.save wrote.
    Never raises for what it finds; an OSError is UNKNOWN.

    `before_parsing` is told the metadata's size in bytes, `before_reading` how many bytes a deep
    look will read; `progress` that storage answers, and how far the work has come. Of the shards
    that `done` has, of the same metadata, only the size is looked at again.
    """
    size, mtime = 0, 0.0

    def found(state: CheckpointState, reason: str = "") -> CheckpointReport:
        return report(path, state, reason, size=size, mtime=mtime)

    def alive() -> None:
        progress(None)

    try:
        with _open(path) as folder:
            mtime = os.fstat(folder.fd).st_mtime
            if (raw := _read_metadata(folder, alive)) is None:
                size, mtime = _so_far(folder, mtime)
                return found(*_without_metadata(folder))
            data, status = raw
            size, mtime = len(data), status.st_mtime
            this = (status.st_size, status.st_mtime_ns)
            before_parsing(size)
            contents = parse(data)
            _check_keys(contents, required)
            shards = sorted(contents.shards.items())
            if deep:
                before_reading(sum(piece.length for _, pieces in shards for piece in pieces))
            probes = max(2, MAX_PROBES // max(1, len(shards)))
            learned = numbers.learned(contents.tensors)
            before = done.shards if done is not None and done.metadata == this else 0
            whole = Whole()
            for number, (file, pieces) in enumerate(shards, 1):
                again = number > before
                size += check_shard(folder, file, pieces, probes if again else 0, alive, learned)
                if deep and again:
                    whole += read_shard(folder, file, pieces, alive)
                come = ShardProgress(metadata=this, shards=number, of=len(shards))
                progress(come if again else None)
    except (BadError, RefusedError) as bad:
        return found(CheckpointState.UNUSABLE, str(bad))
    except FileNotFoundError:
        return found(CheckpointState.UNUSABLE, NO_DIRECTORY)
    except NotADirectoryError:
        return found(CheckpointState.UNUSABLE, "not a directory")
    except MemoryError:
        return found(*_short_of_memory(size))
    except OSError as error:
        lasting = error.errno in _LASTING
        where = f"{Path(error.filename).name} " if error.filename else ""
        reason = f"{where}can't be read: {error.strerror or error}"
        return found(CheckpointState.UNUSABLE if lasting else CheckpointState.UNKNOWN, reason)
    return found(CheckpointState.VERIFIED, _not_compared(whole))


def _without_metadata(folder: Folder) -> tuple[CheckpointState, str]:
    """Not finished, or of a form that has none."""
    if "__0.metadata" in folder.names():
        why = "saved with use_collectives=False (__0.metadata): superv can't verify this form"
        return CheckpointState.UNUSABLE, f"{why}; let DCP use collectives"
    return CheckpointState.INCOMPLETE, "no .metadata: not finished"


def _not_compared(whole: Whole) -> str:
    """What a deep look could not tell of; nothing where there is no such thing."""
    if not whole.not_compared:
        return ""
    lack = "carry no checksum that is known here: they were read, and not compared"
    return f"{whole.not_compared} of {whole.pieces} pieces {lack}"


def _so_far(folder: Folder, mtime: float) -> tuple[int, float]:
    """The bytes of what was saved, and when that changed last."""
    size = 0
    with os.scandir(folder.fd) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # it may be renamed at this moment
                status = entry.stat(follow_symlinks=False)
                size, mtime = size + status.st_size, max(mtime, status.st_mtime)
    return size, mtime


def fingerprint(path: str, *, alive: Callable[[], None] = lambda: None) -> str:
    """Changes when a file of this checkpoint comes, goes, or has another size, time or owner.

    Costs one stat for each file. Empty where there is no finished checkpoint. Raises OSError.
    """
    said = hashlib.blake2b(digest_size=16)
    try:
        with _open(path) as folder, os.scandir(folder.fd) as entries:
            by_name = sorted(entries, key=lambda entry: entry.name)
            if not any(entry.name == ".metadata" for entry in by_name):
                return ""
            for entry in by_name:
                status = entry.stat()
                facts = (entry.name, status.st_size, status.st_mtime_ns, status.st_uid)
                said.update(repr((*facts, entry.is_symlink())).encode())
                alive()
    except (RefusedError, FileNotFoundError, NotADirectoryError):
        return ""
    return said.hexdigest()


def _short_of_memory(size: int) -> tuple[CheckpointState, str]:
    """Whether the metadata is to blame, or the machine: is there room for much more than usual?"""
    needed = limits(size)[0] // 2
    try:
        mmap.mmap(-1, needed).close()
    except (OSError, MemoryError):
        return (
            CheckpointState.UNKNOWN,
            f"can't be read: less than {needed >> 20} MB of memory to be had here",
        )
    return (
        CheckpointState.UNUSABLE,
        f".metadata asks for more than {limits(size)[0] >> 20} MB of memory",
    )


# --- what is there


def listing(directory: str, *, above: int = -1) -> Listing:
    """The checkpoints `step-N` and `aNNNN/step-N` of a directory with N > above, not looked into.

    Raises OSError when a directory can't be listed; one that does not exist is an empty Listing.
    """
    try:
        root = _open(directory)
    except FileNotFoundError:
        return Listing(exists=False, paths=(), refused=())
    except RefusedError as error:  # an attempt's own: whatever was saved in there
        refusal = report(directory, CheckpointState.UNUSABLE, str(error))
        return Listing(exists=True, paths=(), refused=(refusal,))
    steps: list[tuple[int, str]] = []
    refused: list[CheckpointReport] = []
    with root:
        for name in _steps(root, above, steps, refused):
            try:
                with root.enter(name, our_links=True) as attempt:
                    _steps(attempt, above, steps, refused)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except RefusedError as error:
                refused.append(report(f"{root.path}/{name}", CheckpointState.FOREIGN, str(error)))
    refused.sort(key=lambda one: one.step, reverse=True)
    if (more := len(refused) - MAX_REFUSED) > 0:
        last = refused[MAX_REFUSED - 1]
        reason = f"{last.reason}; and {more} more like it"
        refused[MAX_REFUSED - 1 :] = [report(last.path, last.state, reason)]
    newest_first = tuple(path for _, path in sorted(steps, reverse=True))
    return Listing(exists=True, paths=newest_first, refused=tuple(refused))


def _steps(
    folder: Folder, above: int, steps: list[tuple[int, str]], refused: list[CheckpointReport]
) -> list[str]:
    """Sort a folder's checkpoints into those to look into and another user's; its attempts."""
    attempts = []
    for name in folder.names():
        if attempt_of(name) is not None:
            attempts.append(name)
        if (step := step_of(name)) is None or step <= above:
            continue
        path = f"{folder.path}/{name}"
        try:
            folder.check(name)
            steps.append((step, path))
        except FileNotFoundError:
            continue
        except RefusedError as error:
            refused.append(report(path, CheckpointState.FOREIGN, str(error)))
    return attempts
