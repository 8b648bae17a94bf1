"""The reader of the kernel's log, on plain files of records."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from healthchecks.frame.check import Unknown
from healthchecks.frame.context import Ctx, Memory
from healthchecks.sources import kernel_log

NOW = 1_800_000_000.0
UP_S = 5000.0
BOOTED = NOW - UP_S


def record(seq: int, at_s: float, text: str, priority: int = 4) -> str:
    return f"{priority},{seq},{int(at_s * 1e6)},-;{text}\n"


class LoggedNode:
    """A root with a kernel log, looked at again and again by one check."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "dev").mkdir()
        (root / "proc").mkdir()
        (root / "proc/uptime").write_text(f"{UP_S} 100.0\n")
        self.log = root / "dev/kmsg"
        self.log.write_text("")
        self.memory = Memory({}, NOW)

    def ctx(self, now: float = NOW) -> Ctx:
        return Ctx(root=self.root, node="n1", now=now, boot_id="b", memory=self.memory)

    def texts(self, *substrings: str) -> list[str]:
        return [line.text for line in kernel_log.new_lines(self.ctx(), *substrings)]

    def append(self, *records: str) -> None:
        with self.log.open("a") as file:
            file.writelines(records)


@pytest.fixture
def node(tmp_path: Path) -> LoggedNode:
    return LoggedNode(tmp_path)


def test_a_line_is_given_once(node: LoggedNode) -> None:
    node.append(record(7, 1.5, "one"), record(8, 2.5, "two"))
    first, second = kernel_log.new_lines(node.ctx())
    assert (first.text, first.seq, first.count, first.at) == ("one", 7, 1, BOOTED + 1.5)
    assert second.last == BOOTED + 2.5
    assert node.texts() == []
    node.append(record(9, 3.0, "three"))
    assert node.texts() == ["three"]


def test_an_empty_log_has_no_lines(node: LoggedNode) -> None:
    seen = kernel_log.read(node.ctx())
    assert (seen.lines, seen.begins, seen.first, seen.lost) == ([], None, True, 0)


def test_needles_choose_and_the_place_moves_all_the_same(node: LoggedNode) -> None:
    node.append(record(0, 1, "NVRM: Xid x"), record(1, 1, "other"), record(2, 2, "mlx5 Xid NVRM: "))
    assert node.texts("NVRM: ", "mlx5") == ["NVRM: Xid x", "mlx5 Xid NVRM: "]
    assert node.texts() == []


def test_only_what_is_urgent(node: LoggedNode) -> None:
    node.append(record(0, 1, "emergency", 0), record(1, 1, "info", 6), record(2, 1, "warning", 4))
    lines = kernel_log.new_lines(node.ctx(), level=4)
    assert [(line.text, line.level) for line in lines] == [("emergency", 0), ("warning", 4)]


def test_what_programs_write_through_the_device_is_not_the_kernels_word(node: LoggedNode) -> None:
    """The kernel gives it the facility that the writer names, or that of users: never its own."""
    node.append(*(record(n, n, f"facility {n}", priority=n * 8 + 4) for n in range(24)))
    assert node.texts() == ["facility 0"]


def test_lines_of_one_text_are_one(node: LoggedNode) -> None:
    node.append(*(record(i, i, "again" if i % 2 else "and") for i in range(6)))
    first, second = kernel_log.new_lines(node.ctx())
    assert (first.text, first.count, first.at, first.last) == ("and", 3, BOOTED, BOOTED + 4)
    assert (second.text, second.count, second.seq) == ("again", 3, 5)
    assert second.times == [BOOTED + 1, BOOTED + 3, BOOTED + 5]


def test_continuation_lines_and_escapes(node: LoggedNode) -> None:
    node.append("6,1,1000000,-;usb 1-1: new\\x0adevice\n SUBSYSTEM=usb\n DEVICE=c189:1\n")
    node.append(record(2, 2, "next"))
    assert node.texts() == ["usb 1-1: new\ndevice", "next"]
    assert node.texts() == []


def test_what_is_not_a_record_is_passed_over(node: LoggedNode) -> None:
    node.append("garbage\n", "1,x,y,-;no number\n", record(3, 1, "good"), "cut off, 4")
    assert node.texts() == ["good"]
    node.append("\n", record(5, 2, "next"))
    assert node.texts() == ["next"]


def test_a_log_that_went_round_says_how_much_is_lost(node: LoggedNode) -> None:
    node.append(record(10, 1, "seen"))
    node.texts()
    node.log.write_text(record(25, 2, "a") + record(26, 3, "b"))
    seen = kernel_log.read(node.ctx())
    assert [line.text for line in seen.lines] == ["a", "b"]
    assert (seen.lost, seen.first, seen.begins) == (14, False, BOOTED + 2)


@pytest.mark.parametrize("count", [1, 4])
def test_a_log_begun_anew_is_read_from_its_beginning(node: LoggedNode, count: int) -> None:
    """Emptied and written again: the number that was seen last may be there again, or not."""
    node.append(record(0, 1, "old"), record(1, 2, "old"), record(2, 3, "old"))
    node.texts()
    node.log.write_text("".join(record(i, 10 + i, f"new {i}") for i in range(count)))
    assert node.texts() == [f"new {i}" for i in range(count)]


def test_another_boot_begins_at_the_beginning(node: LoggedNode) -> None:
    node.append(record(0, 1, "line"))
    node.texts()
    node.memory = Memory({"lasting": node.memory.data["lasting"]}, NOW)
    assert node.texts() == ["line"]


def test_checks_of_one_run_share_the_reading_and_not_the_place(node: LoggedNode) -> None:
    node.append(record(0, 1, "one"))
    assert node.texts() == ["one"]
    node.memory = Memory({}, NOW)  # another check
    assert node.texts() == ["one"]


def test_800_000_lines_are_folded(node: LoggedNode) -> None:
    texts = [b"NVRM: Xid (PCI:0000:3b:00): 45, pid=%d, name=python3, Ch 08" % n for n in range(29)]
    node.log.write_bytes(
        b"".join(b"4,%d,%d,-;%s\n" % (i, i, texts[i % 29]) for i in range(800_000))
    )
    lines = kernel_log.new_lines(node.ctx(), "Xid")
    assert len(lines) == 29
    assert sum(line.count for line in lines) == 800_000
    assert all(len(line.times) <= kernel_log.MAX_TIMES for line in lines)
    assert max(line.seq for line in lines) == 799_999
    assert node.texts() == []


def test_more_different_lines_than_anybody_reads_are_counted(node: LoggedNode) -> None:
    many = kernel_log.MAX_TEXTS + 3
    node.log.write_bytes(b"".join(b"4,%d,%d,-;line %d\n" % (i, i, i) for i in range(many)))
    seen = kernel_log.read(node.ctx())
    assert (len(seen.lines), seen.lost) == (kernel_log.MAX_TEXTS, 3)
    assert node.texts() == []


def test_a_log_that_is_not_there_is_unknown(node: LoggedNode) -> None:
    node.log.unlink()
    with pytest.raises(Unknown, match="no /dev/kmsg"):
        node.texts()


def test_a_log_that_may_not_be_read_is_unknown() -> None:
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is closed to other users
        node = LoggedNode(Path(folder))
        node.root.chmod(0o755)
        node.log.chmod(0)
        if (child := os.fork()) == 0:  # root may read anything
            code = 1
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                node.texts()
            except Unknown as why:
                code = 0 if "dmesg_restrict=0" in str(why) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not os.access("/dev/kmsg", os.R_OK), reason="no kernel log for this user")
def test_the_log_of_this_machine() -> None:
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
    except OSError:
        pytest.skip("dmesg_restrict")
    ctx = Ctx(root=Path("/"), node="n1", now=NOW, boot_id="b", memory=Memory({}, NOW))
    seen = kernel_log.read(ctx)
    assert seen.first
    again = kernel_log.read(ctx)
    assert not again.first
    assert again.lines == []
