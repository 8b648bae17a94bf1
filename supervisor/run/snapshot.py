"""The trainer's code as it was at launch: packed once, unpacked on every node's local disk.

Code is .py, .toml, .yaml, .yml, .json and .sh files below the working directory, the script's
folder and PYTHONPATH, and such that arguments name. In the copy each lies at its old absolute path
below the copy's own folder. Everything beside it (data, compiled extensions, folders without code)
is a link to where it was: code still finds it there, and it is not fixed.

Storage may hang: `take` lets a child (`python -m supervisor.run.snapshot`) do the reading.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import sys
import tarfile
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUFFIXES = (".py", ".toml", ".yaml", ".yml", ".json", ".sh")
MAX_FILE = 1_000_000  # bytes; a larger one is data
MAX_FILES = 2000
MAX_BYTES = 32_000_000
MAX_ENTRIES = 2000  # a folder that holds more is data
MAX_LOOK = 20_000  # entries looked at in all
MAX_LINKS = 64_000_000  # bytes of links.json
MAX_UNPACKED = MAX_BYTES + MAX_LINKS + 10_000 * MAX_FILES  # bytes of the tar file, with its headers
NOT_CODE = {"__pycache__", "site-packages", "node_modules"}
CODE = "{superv_code}"  # stands for the copy's folder, which only the node knows
LINKS = "links.json"  # member of the archive: path → target
DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What was packed."""

    digest: str  # of the archive: names the copy
    bytes: int
    links: int
    sums: Mapping[str, str]  # absolute path of each file → its checksum
    words: Mapping[str, str]  # arguments that name one of them → what ranks are given instead
    path: str  # where modules of the trainer are looked for first; empty: as Python does
    left_out: tuple[str, ...]  # lines that say which code is read where it was, and why

    def word(self, word: str) -> str:
        """The argument that a rank is given for this one."""
        return self.words.get(word, word)

    def summary(self) -> str:
        """One line for a person."""
        kept = f"{len(self.sums)} files of code ({self.bytes / 1000:.0f} kB)"
        return "; ".join([kept, *self.left_out])

    def changed(self, now: Snapshot) -> str:
        """The first file that is another one now, or an empty string."""
        both = sorted(self.sums.keys() | now.sums.keys())
        return next((path for path in both if self.sums.get(path) != now.sums.get(path)), "")


@dataclass(slots=True)
class _Tree:
    """What was found so far."""

    leave: frozenset[str]  # folders that are data: checkpoints
    files: dict[str, bytes] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    links: set[str] = field(default_factory=set)
    left_out: dict[str, str] = field(default_factory=dict)  # why → the first that it was said of
    looked: int = 0
    bytes: int = 0

    def add(self, path: str) -> None:
        """Take a file where it is code, and link it where it is not."""
        if path in self.files:
            return
        self.links.add(path)
        if not path.endswith(SUFFIXES):
            return
        if not _is_text(path):
            self.left_out.setdefault("a name that is not UTF-8", path)
            return
        try:
            data, mode = _read(path)
        except OSError as error:
            self.left_out.setdefault(f"can't be read ({error.strerror})", path)
            return
        if len(data) > MAX_FILE:
            self.left_out.setdefault(f"larger than {MAX_FILE // 1_000_000} MB", path)
        elif len(self.files) >= MAX_FILES or self.bytes + len(data) > MAX_BYTES:
            why = f"beyond {MAX_FILES} files or {MAX_BYTES // 1_000_000} MB"
            self.left_out.setdefault(why, path)
        else:
            self.files[path], self.modes[path] = data, mode & 0o111
            self.bytes += len(data)
            self.links.discard(path)


def _is_text(path: str) -> bool:
    """Whether a path can stand in a message or a record, which are UTF-8."""
    return not any("\ud800" <= c <= "\udfff" for c in path)


def _read(path: str) -> tuple[bytes, int]:
    """The file's content, as far as it is code, and its mode. Raises OSError.

    Not blocking: a FIFO that somebody put in its place must not hold us.
    """
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return file.read(MAX_FILE + 1), mode


def _walk(tree: _Tree, root: str) -> None:
    """Breadth first, so that limits cut what is deep."""
    queue = deque([root])
    seen: set[str] = set()
    while queue:
        folder = queue.popleft()
        real = os.path.realpath(folder)
        if real in seen:  # a loop of links
            tree.links.add(folder)
            continue
        seen.add(real)
        try:
            entries = sorted(_listed(folder), key=lambda entry: entry.name)
        except OSError:  # not ours to read: the ranks will see the same
            tree.links.add(folder)
            continue
        tree.looked += len(entries)
        if len(entries) > MAX_ENTRIES or tree.looked > MAX_LOOK:
            tree.left_out.setdefault(f"more than {MAX_ENTRIES} entries, or too much", folder)
            tree.links.add(folder)
            continue
        for entry in entries:
            if entry.is_dir():
                if _may_hold_code(tree, entry):
                    queue.append(entry.path)
                elif entry.name != "__pycache__":
                    tree.links.add(entry.path)
            elif entry.is_file():
                tree.add(entry.path)


def _listed(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            yield entry
            if number >= MAX_ENTRIES:
                return


def _may_hold_code(tree: _Tree, entry: os.DirEntry[str]) -> bool:
    hidden = entry.name.startswith(".") or entry.name in NOT_CODE
    venv = os.path.exists(os.path.join(entry.path, "pyvenv.cfg"))  # noqa: PTH110, PTH118
    return not hidden and not venv and entry.path not in tree.leave


def _needed_links(tree: _Tree) -> dict[str, str]:
    """A link for whatever lies beside code; one for a whole folder that holds none."""
    holding = {"/"}
    for path in tree.files:
        holding.update(str(parent) for parent in Path(path).parents)
    links: dict[str, str] = {}
    for path in tree.links:
        top = path
        while str(Path(top).parent) not in holding:
            top = str(Path(top).parent)
        if top not in holding:
            links[top] = top
    return links


def _archive(tree: _Tree, links: Mapping[str, str]) -> bytes:
    """The same bytes for the same files."""
    out = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        members = [(LINKS, json.dumps(links, sort_keys=True).encode(), 0o444)]
        members += [(p[1:], tree.files[p], 0o444 | tree.modes[p]) for p in sorted(tree.files)]
        for name, data, mode in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def pack(question: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The child's work: a Snapshot as plain data, and the archive. Raises OSError.

    `question`: entry (what follows `python`, or a command), script (its path or empty), module,
    workdir, pythonpath (the job's own, or empty), leave (folders that are data).
    """
    workdir = os.path.normpath(question["workdir"])
    script = os.path.realpath(question["script"]) if question["script"] else ""
    tree = _Tree(leave=frozenset(os.path.normpath(path) for path in question["leave"]))
    places = {word: _file_in(word, workdir) for word in question["entry"]}
    for path in [script, *places.values()]:
        if path and os.path.isfile(path):  # noqa: PTH113
            tree.add(path)
    search = [_place(entry, workdir) for entry in question["pythonpath"].split(":") if entry]
    roots = [workdir, *([str(Path(script).parent)] if script else []), *search]
    for number, root in enumerate(dict.fromkeys(roots)):
        inside = any(Path(root).is_relative_to(other) for other in roots[:number])
        if os.path.isdir(root) and not inside:  # noqa: PTH112
            _walk(tree, root)
    words = {
        word: word[: len(word) - len(_value(word))] + CODE + path
        for word, path in places.items()
        if path in tree.files
    }
    if script in tree.files:
        words[question["script"]] = CODE + script
    if search:
        both = [place for entry in search for place in (CODE + entry, entry)]
        words[question["pythonpath"]] = ":".join(both)
    data = _archive(tree, _needed_links(tree))
    found = {
        "digest": hashlib.sha256(data).hexdigest()[:16],
        "bytes": tree.bytes,
        "links": len(_needed_links(tree)),
        "sums": {p: hashlib.sha256(d).hexdigest()[:16] for p, d in sorted(tree.files.items())},
        "words": words,
        "path": CODE + workdir if question["module"] else "",
        "left_out": [
            f"{why}: {path if _is_text(path) else ascii(path)} is read where it is"
            for why, path in tree.left_out.items()
        ],
    }
    return found, data


def _value(word: str) -> str:
    """What may be a path in an argument: all of it, or what follows `--option=`."""
    return word.partition("=")[2] if word.startswith("-") and "=" in word else word


def _place(text: str, workdir: str) -> str:
    return os.path.normpath(os.path.join(workdir, text))  # noqa: PTH118


def _file_in(word: str, workdir: str) -> str:
    """The file that an argument may name, or an empty string."""
    value = _value(word)
    return _place(value, workdir) if value.endswith(SUFFIXES) and "\0" not in value else ""


def main() -> int:
    """The child: a question on standard input, an answer on standard output, the archive at OUT."""
    try:
        found, data = pack(json.load(sys.stdin))
        if sys.argv[1]:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            with os.fdopen(os.open(sys.argv[1], flags, 0o600), "wb") as archive:
                archive.write(data)
    except OSError as error:
        sys.stderr.write(f"{error.filename}: {error.strerror}\n")
        return 1
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


# --- the engine's side


def take(question: Mapping[str, Any], out: Path | None) -> Snapshot:
    """Pack the code into `out`, or only say what would be packed.

    Raises UserError where it can't be read, TransientError where storage does not answer.
    """
    import msgspec

    from supervisor import proc
    from supervisor.core.errors import TransientError, UserError

    done = proc.run_sync(
        (sys.executable, "-m", "supervisor.run.snapshot", str(out or "")),
        stdin=json.dumps(question).encode(),
        deadline_s=DEADLINE_S,
        cwd=str(Path(__file__).parents[2]),
    )
    if done.timed_out:
        where = question["workdir"]
        raise TransientError(f"storage at {where} did not answer within {DEADLINE_S:.0f} s")
    if done.rc:
        raise UserError(f"the trainer's code can't be read: {done.why()}")
    return msgspec.json.decode(done.out, type=Snapshot)


# --- the node's side


def unpack(archive: Path, place: Path, digest: str) -> Path:
    """The folder of the copy, made where it is not there yet.

    Its files and folders are read-only: code that writes beside itself would write to one node's
    local disk, where nobody looks. Raises OSError, ValueError where the archive is not the one, or
    where `place` is not the user's alone.
    """
    _make_private(place)
    final = place / digest
    if final.exists():
        return final
    data = archive.read_bytes()
    if hashlib.sha256(data).hexdigest()[:16] != digest:
        raise ValueError(f"{archive}: damaged")
    part = place / f"{digest}.{os.urandom(4).hex()}"
    part.mkdir(mode=0o700)
    try:
        _fill(part, data)
        _make_read_only(part)
        part.rename(final)
    except (tarfile.TarError, EOFError, zlib.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{archive}: damaged: {type(error).__name__}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return final


def _make_private(place: Path) -> None:
    """What lies there is run as us. Raises ValueError where another user could change it."""
    place.mkdir(mode=0o700, exist_ok=True)
    status = place.lstat()
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    if not ours or status.st_mode & 0o022:
        raise ValueError(f"{place} must be a folder of yours that nobody else may write to")


def _fill(part: Path, data: bytes) -> None:
    """Write an archive's files, then its links; each below `part`, none through a link."""
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
        plain = packed.read(MAX_UNPACKED + 1)
    if len(plain) > MAX_UNPACKED:
        raise ValueError(f"more than {MAX_UNPACKED} bytes when it is unpacked")
    links: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as tar:
        for number, member in enumerate(tar):
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
                raise ValueError(f"{member.name!a} is not a file")
            most = MAX_LINKS if member.name == LINKS else MAX_FILE
            content = tar.extractfile(member)
            if number > MAX_FILES or content is None or not 0 <= member.size <= most:
                raise ValueError(f"{member.name!a}: too many files, or too large a file")
            if member.name == LINKS:
                links = _links(content.read())
                continue
            path = _inside(part, member.name)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(content.read())
            path.chmod(0o400 | (member.mode & 0o100))
    made: set[Path] = set()
    for name, target in links.items():
        path = _inside(part, name[1:])
        if not made.isdisjoint(path.parents):
            raise ValueError(f"{name!a} lies behind a link")
        path.symlink_to(target)
        made.add(path)


def _links(text: bytes) -> dict[str, str]:
    """The links of an archive: path → target. Raises ValueError."""
    links = json.loads(text)
    if not isinstance(links, dict) or not all(isinstance(to, str) for to in links.values()):
        raise ValueError(f"{LINKS} is not of the usual form")
    return links


def _make_read_only(part: Path) -> None:
    for folder, below, _ in os.walk(part, topdown=False):
        if "__pycache__" not in below:
            Path(folder, "__pycache__").mkdir(mode=0o700)
        Path(folder).chmod(0o500)


def _inside(root: Path, name: str) -> Path:
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts:
        raise ValueError(f"{name!a}: leads out of the copy")
    return root / name


if __name__ == "__main__":
    sys.exit(main())
