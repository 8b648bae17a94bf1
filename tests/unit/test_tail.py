"""Logs as ranks really write them: in pieces, with colours, in floods, on disks of all kinds."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.agent import tail as subject
from supervisor.agent.tail import Tail, read_chunk

BLOCK = 4096


class Followed:
    """One log, its follower, and what that saw."""

    def __init__(self, path: Path, cap: int = 1 << 30) -> None:
        self.path = path
        self.lines: list[tuple[int, str]] = []
        self.problems: list[str] = []
        self.tail = Tail(cap, lambda rank, line: self.lines.append((rank, line)), self.problem)
        self.tail.add(0, str(path))

    def problem(self, text: str) -> None:
        self.problems.append(text)

    def write(self, data: bytes) -> None:
        with self.path.open("ab") as log:
            log.write(data)

    def pushed(self) -> list[str]:
        """The lines that came with what inotify pushed since the last call."""
        before = len(self.lines)
        while select.select([self.tail.fd], [], [], 0)[0]:
            while self.tail.ready():
                pass
        while self.tail.catch_up():
            pass
        return [line for _, line in self.lines[before:]]


@pytest.fixture
def log(tmp_path: Path):
    made: list[Followed] = []

    def make(**options: int) -> Followed:
        made.append(Followed(tmp_path / "log", **options))
        return made[-1]

    yield make
    for each in made:
        each.tail.close()


def test_lines_across_writes(log):
    one = log()
    one.write(b"first\nsec")
    assert one.pushed() == ["first"]
    one.write(b"ond")
    assert one.pushed() == []
    one.write(b"\n\nthird\n")
    assert one.pushed() == ["second", "third"]


def test_inotify_pushes_without_being_asked(log):
    one = log()
    assert select.select([one.tail.fd], [], [], 0)[0] == []
    one.write(b"x\n")
    assert select.select([one.tail.fd], [], [], 20)[0] == [one.tail.fd]
    assert one.tail.ready() is False  # nothing more
    assert one.lines == [(0, "x")]


def test_what_was_there_before_is_read(log, tmp_path: Path):
    (tmp_path / "log").write_bytes(b"before\nand ")
    one = log()
    one.write(b"after\n")
    assert one.pushed() == ["before", "and after"]


def test_colours_carriage_returns_and_what_is_no_text(log):
    one = log()
    one.write(b"\x1b[31mred\x1b[0m \x1b[1;38;5;9mstep: 3\x1b[K\x1b[?25h\r\n")
    one.write(b"10%\r20%\rdone\n")
    one.write(b"\xff\xfe caf\xc3\xa9\n")
    assert one.pushed() == ["red step: 3", "10%", "20%", "done", "\ufffd\ufffd café"]


def test_a_long_line_is_cut(log):
    one = log()
    one.write(b"x" * 10_000 + b"\nshort\n")
    one.write(b"y" * 3_000_000)
    one.pushed()
    one.write(b"end\nnext\n")
    one.pushed()
    assert [line[:6] for _, line in one.lines] == ["xxxxxx", "short", "yyyyyy", "next"]
    assert max(len(line) for _, line in one.lines) == subject.MAX_LINE


def test_a_line_of_exactly_the_longest_length(log):
    one = log()
    one.write(b"z" * subject.MAX_LINE + b"\n")
    assert one.pushed() == ["z" * subject.MAX_LINE]


def test_a_reader_far_behind_skips_the_middle_of_a_flood(log):
    one = log()
    lines = 30 << 20 >> 4  # of 16 bytes
    one.write(b"".join(b"line %010d\n" % n for n in range(lines)))
    assert not one.lines
    seen = one.pushed()
    assert seen[-1] == f"line {lines - 1:010d}"
    assert (subject.BEHIND // 2 - 16) // 16 <= len(seen) <= subject.BEHIND // 2 // 16 + 1


def test_one_look_reads_a_piece_so_that_others_have_their_turn(log):
    one = log()
    one.write(b"x" * 99 + b"\n")
    one.write((b"x" * 99 + b"\n") * (2 * subject.PIECE // 100))
    assert one.tail.ready() is True
    assert len(one.lines) <= subject.PIECE // 100 + 1
    assert one.tail.catch_up() is True


def test_the_last_lines_at_the_end_of_a_rank(log):
    one = log()
    one.write(b"".join(b"%d\n" % n for n in range(200)) + b"no newline at the en\x1b[0md")
    last = one.tail.drain(0)
    assert len(last) == subject.TAIL_LINES and last[-2:] == ["199", "no newline at the end"]
    assert one.tail.drain(7) == []
    one.write(b" and more\n")
    assert one.tail.drain(0)[-1] == " and more"


def test_the_middle_of_a_capped_log_gives_its_blocks_back(log, tmp_path: Path):
    cap = 1 << 20
    one = log(cap=cap)
    piece = b"".join(b"%015d\n" % n for n in range(1 << 14))  # 256 KiB
    for _ in range(40):  # 10 MiB
        one.write(piece)
        one.pushed()
    path = tmp_path / "log"
    assert path.stat().st_size == 40 * len(piece)
    assert path.stat().st_blocks * 512 <= subject.HEAD + cap + 16 * BLOCK
    assert one.problems == []
    data = path.read_bytes()
    assert data[: subject.HEAD] == (piece * 40)[: subject.HEAD]  # the beginning stays
    assert data[-cap // 2 :] == (piece * 40)[-cap // 2 :]  # and the end
    assert data[len(data) // 2] == 0
    assert len(one.lines) == 40 << 14  # the reader missed none


def test_a_log_below_its_cap_keeps_every_block(log, tmp_path: Path):
    one = log(cap=1 << 20)
    one.write(b"x" * (2 << 20))
    one.pushed()
    assert (tmp_path / "log").stat().st_blocks * 512 >= 2 << 20


def test_pieces_of_a_log_skip_its_holes(log, tmp_path: Path):
    path = str(tmp_path / "log")
    one = log(cap=1 << 20)
    for n in range(40):
        one.write(b"%d" % (n % 10) * (256 * 1024))
        one.pushed()
    size = os.stat(path).st_size
    hole = subject.HEAD  # begins where the kept beginning ends
    assert read_chunk(path, 0, 10) == (0, b"0" * 10)
    start, data = read_chunk(path, hole - 4, 100)
    assert start == hole - 4 and data[:4] == b"3333" and len(data) <= BLOCK + 4
    start, data = read_chunk(path, hole + BLOCK, 100)
    assert start > hole + BLOCK and len(data) == 100 and b"\0" not in data
    assert read_chunk(path, -5, 100) == (size - 5, b"99999")
    assert read_chunk(path, -(10**12), 3) == (0, b"000")
    assert read_chunk(path, size, 10) == (size, b"")
    assert read_chunk(path, size + 99, 10) == (size, b"")
    assert read_chunk(path, 3, 0) == (3, b"") and read_chunk(path, 3, -1) == (3, b"")


def test_a_piece_where_nothing_but_a_hole_is_left(tmp_path: Path):
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.write(b"begin")
        file.truncate(1 << 20)
    assert read_chunk(str(path), BLOCK * 4, 100) == (1 << 20, b"")
    with pytest.raises(FileNotFoundError):
        read_chunk(str(tmp_path / "none"), 0, 1)


def test_changes_that_inotify_lost_are_found(log, tmp_path: Path):
    """The queue overflows: more events than fs.inotify.max_queued_events, none of them read."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    one = log()
    paths = [tmp_path / "log", tmp_path / "second", tmp_path / "late"]
    for rank in (1, 2):
        one.tail.add(rank, str(paths[rank]))
    with paths[0].open("ab", 0) as a, paths[1].open("ab", 0) as b, paths[2].open("ab", 0) as late:
        for _ in range(limit // 2 + 2):  # in turns: the kernel merges equal neighbours
            a.write(b".")
            b.write(b".")
        late.write(b"step: 1\n")  # of this one the queue knows nothing
    assert not one.lines
    while select.select([one.tail.fd], [], [], 0)[0]:
        one.tail.ready()
    assert one.lines == [(2, "step: 1")]


NO_INOTIFY = """
import ctypes, sys
from supervisor.agent.tail import Tail
libc = ctypes.CDLL(None)
while libc.inotify_init1(0) >= 0:  # as a user's other programs do: 128 of them in all
    pass
lines, problems = [], []
tail = Tail(1 << 30, lambda rank, line: lines.append(line), problems.append)
tail.add(0, sys.argv[1])
open(sys.argv[1], "a").write("step: 1\\n")
assert tail.fd < 0 and not lines
tail.catch_up()
assert lines == ["step: 1"], lines
assert problems == ["logs are read once a second: no inotify (Too many open files)"], problems
tail.close()
"""


def test_without_inotify_logs_are_read_all_the_same(tmp_path: Path):
    """In a user namespace, whose limit is its own."""
    limited = 'echo 5 > /proc/sys/user/max_inotify_instances; exec "$@"'
    inside = ("unshare", "--user", "--map-root-user", "sh", "-c", limited, "sh")
    done = subprocess.run(
        [*inside, sys.executable, "-c", NO_INOTIFY, str(tmp_path / "log")],
        capture_output=True,
        text=True,
        cwd=Path(subject.__file__).parents[2],
    )
    if "unshare" in done.stderr:
        pytest.skip("needs user namespaces")
    assert done.returncode == 0, done.stderr


NO_HOLES = """
import os, sys
from supervisor.agent.tail import Tail
path = sys.argv[1] + "/log"
problems = []
tail = Tail(1 << 20, lambda rank, line: None, problems.append)
tail.add(0, path)
for _ in range(12):
    open(path, "ab").write(b"x" * 262144)
    tail.catch_up()
assert open(path, "rb").read() == b"x" * 12 * 262144
problem = f"{path} grows without limit: it can't be capped (Operation not supported)"
assert set(problems) == {problem}, problems
print("ok")
"""


@pytest.mark.lab
def test_a_file_system_without_holes_says_so(tmp_path: Path):
    """ramfs: it knows no fallocate()."""
    script = 'mount -t ramfs none "$1" || exit 77; shift; exec "$@"'
    inside = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh")
    done = subprocess.run(
        [*inside, str(tmp_path), sys.executable, "-c", NO_HOLES, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(subject.__file__).parents[2],
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"needs root: {done.stderr.strip()}")
    assert done.stdout == "ok\n", done.stderr
