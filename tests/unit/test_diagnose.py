"""`superv diagnose` on logs rebuilt from public failure reports, and on hostile ones."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from supervisor.cli import cli

LOGS = Path(__file__).parents[1] / "data" / "diagnose"
TRUTH = list(csv.DictReader((LOGS / "truth.tsv").read_text().splitlines(), delimiter="\t"))
MISSED: dict[str, str] = {}  # log → what is still told wrong of it


def run(*argv: str | Path) -> dict[str, Any]:
    done = CliRunner().invoke(cli, ["diagnose", *map(str, argv), "--json"])
    assert done.exit_code in (0, 3), done.output
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.mark.parametrize("row", TRUTH, ids=[row["log"] for row in TRUTH])
def test_the_cause_is_found_and_nobody_is_wrongly_blamed(
    row: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(LOGS / row["log"])
    options = row["options"].split()
    files = sorted(name for name in os.listdir() if name not in options)
    said = run(*files, *options)
    blamed = {one["node"] or f"rank {one['rank']}" for one in said["culprits"]}
    truth = set(filter(None, row["culprits"].split(",")))
    assert blamed <= truth, said["why"]
    if row["log"] not in MISSED:
        assert said["cause"] in row["causes"].split("|"), said["evidence"]
        assert blamed == truth


GOOD = "[rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n"


def test_what_can_not_be_read_costs_one_line_each(tmp_path: Path) -> None:
    (tmp_path / "good.log").write_text(GOOD)
    os.mkfifo(tmp_path / "pipe.log")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.log").symlink_to(tmp_path / "nothing")
    (tmp_path / "core.log").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 400)
    (tmp_path / "cut.log.gz").write_bytes(gzip.compress(GOOD.encode() * 9)[:40])
    (tmp_path / "bad.gz").write_bytes(b"\x1f\x8bnot gzip at all")
    (tmp_path / "error.json").write_text('{"message": [')
    said = run(tmp_path)
    assert (said["cause"], said["evidence"][0]["rank"]) == ("cuda-out-of-memory", 3)
    assert len(said["problems"]) == 6, said["problems"]
    assert all("\n" not in line for line in said["problems"])


def test_lines_without_end_are_cut(tmp_path: Path) -> None:
    log = tmp_path / "rank_3.log"
    log.write_bytes(b"x" * 9_000_000 + b"\n" + GOOD.encode() + b"\xff\xfe\x00 " * 1000 + b"\n")
    said = run(log)
    assert said["cause"] == "cuda-out-of-memory"
    assert said["evidence"][0]["line"] == 2


def test_progress_bars_and_colours_hide_nothing(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    bars = "".join(f"\r {n}%|###   | {n}/100 [00:01<00:02, 1.2it/s]" for n in range(100))
    log.write_text(f"{bars}\r\x1b[31m{GOOD.strip()}\x1b[0m\n")
    assert run(log)["cause"] == "cuda-out-of-memory"


def test_a_flood_of_one_line_hides_no_other_rank(tmp_path: Path) -> None:
    for rank in range(3):
        line = f"[rank{rank}]: NCCL WARN Call to ibv_modify_qp failed with error {rank} errno 110\n"
        (tmp_path / f"rank_{rank}.log").write_text(line * 60_000)
    with (tmp_path / "rank_2.log").open("a") as log:
        log.write("[rank2]: RuntimeError: CUDA error: uncorrectable ECC error encountered\n")
    said = run(tmp_path, "--nodes", "n[1-3]")
    assert (said["cause"], said["culprits"][0]["node"]) == ("gpu-memory-error", "n3")
    assert said["read"]["lines"] == 180_001


def test_gzip_is_read(tmp_path: Path) -> None:
    (tmp_path / "slurm-1.out.gz").write_bytes(gzip.compress(GOOD.encode()))
    assert run(tmp_path)["cause"] == "cuda-out-of-memory"


def test_words_of_the_kernel_in_a_job_s_output_are_not_the_kernel_s(tmp_path: Path) -> None:
    (tmp_path / "job.log").write_text(
        "print: NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off\n" + GOOD
    )
    said = run(tmp_path, "--nodes", "n1")
    assert said["culprits"] == []


_OFF_BUS = (
    "NVRM: The NVIDIA GPU 0000:b3:00.0",
    "NVRM: (PCI ID: 10de:2901) installed in this system has",
    "NVRM: fallen off the bus and is not responding to commands.",
)


@pytest.mark.parametrize(
    "form",
    [
        "[ 1843.308145] {0}\n               {1}\n               {2}\n",
        "Mar 02 04:12:20 n7 kernel: {0}\n                           {1}\n    {2}\n",
        "Mar  2 04:12:20 n7 kernel: {0}#012{1}#012{2}\n",
        "4,900,1000000,-;{0}\\x0a{1}\\x0a{2}\n",
    ],
    ids=["dmesg", "journalctl", "rsyslog", "kmsg"],
)
def test_a_kernel_s_record_of_several_lines_is_read_whole(tmp_path: Path, form: str) -> None:
    (tmp_path / "slurm-6.out").write_text(
        "12: RuntimeError: CUDA error: unspecified launch failure\n"
    )
    (tmp_path / "n7.dmesg").write_text(form.format(*_OFF_BUS))
    said = run(tmp_path, "--nodes", "n6,n7")
    assert said["cause"] == "gpu-lost", said["evidence"]
    assert [(one["node"], one["gpu"]) for one in said["culprits"]] == [("n7", "0000:b3:00")]


_STACK = 'Traceback (most recent call last):\n  File "/w/x.py", line 3, in <module>\n'
_UNHANDLED = "DistBackendError: NCCL error in: a.cpp:77, unhandled cuda error\nLast error:\n"


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (_STACK + _UNHANDLED + "Cuda failure 401 'the operation can...'\n", "fabric-manager"),
        (_STACK + "DistBackendError: NCCL error in: a.cpp:77, internal error\n", "nccl-error"),
        (_STACK + "RuntimeError: no idea\n", "python-error"),
        (_STACK + "RuntimeError: no idea\n" + "\n" * 500 + "NCCL error in: a\n", "python-error"),
    ],
    ids=["cuda", "nccl", "nothing", "far"],
)
def test_a_stack_s_end_says_more_than_its_beginning(tmp_path: Path, lines: str, cause: str) -> None:
    text = "".join(f"[rank1]: {line}\n" for line in lines.splitlines())
    (tmp_path / "out.log").write_text(text)
    said = run(tmp_path)
    assert (said["cause"], said["culprits"]) == (cause, []), said["evidence"]


def test_nothing_known_is_status_3(tmp_path: Path) -> None:
    (tmp_path / "job.log").write_text("step: 1 loss: 2.0\nstep: 2 loss: 1.9\n")
    done = CliRunner().invoke(cli, ["diagnose", str(tmp_path)])
    assert done.exit_code == 3 and "unknown" in done.output and "last step 2" in done.output


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "no logs given"),
        (["/nowhere/at/all"], "nothing to read: /nowhere/at/all: No such file"),
        (["/proc/self/status", "--nodes", "n[1"], "--nodes: host list"),
    ],
)
def test_a_mistake_is_one_line(argv: list[str], says: str) -> None:
    done = CliRunner().invoke(cli, ["diagnose", *argv])
    assert says in str(done.exception) and "\n" not in str(done.exception)


def test_a_recorder_s_dump_runs_nothing(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    (tmp_path / "rank_0").write_bytes(
        b"\x80\x02cos\nsystem\nX" + len(f"touch {witness}").to_bytes(4, "little")
        + f"touch {witness}".encode() + b"\x85R."
    )  # fmt: skip
    (tmp_path / "rank_1").write_bytes(b"\x80\x02}(X\xff\xff")
    (tmp_path / "rank_3.log").write_text(GOOD)
    said = run(tmp_path)
    assert said["cause"] == "cuda-out-of-memory" and not witness.exists()
    assert ["os.system: refused" in line for line in said["problems"]] == [True, False]


def test_lines_that_one_node_alone_printed_are_shown_and_blame_nobody(tmp_path: Path) -> None:
    for rank in range(6):
        lines = [f"[rank{rank}]: loaded shard {n} in {n}.5 s" for n in range(50)]
        if rank == 4:
            lines.insert(30, f"[rank{rank}]: retry 3 of read /shared/data/7: it took 88 s")
        (tmp_path / f"rank_{rank}.log").write_text("\n".join(lines) + "\n")
    said = run(tmp_path, "--nodes", "n[1-6]")
    assert [(one["place"], one["line"]) for one in said["alone"]] == [("n5", 31)]
    assert said["culprits"] == []


LOST = "[rank3]: RuntimeError: CUDA error: uncorrectable ECC error encountered"
TIMED = "2026-03-01 10:00:{:02}"
ABORT = "[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.mark.parametrize(
    ("files", "first"),
    [
        ({"a.log": [LOST, f"{TIMED.format(9)} {ABORT}"]}, ("a.log", 1)),
        ({"a.log": ["x", LOST], "b.log": [f"{TIMED.format(9)} {ABORT}"]}, None),
        ({"a.log": [f"{TIMED.format(9)} {LOST}", f"{TIMED.format(5)} {ABORT}"]}, ("a.log", 2)),
        (
            {"a.log": [f"{TIMED.format(9)} {LOST}"], "b.log": [f"{TIMED.format(5)} {ABORT}"]},
            ("b.log", 1),
        ),
    ],
)
def test_no_line_is_called_first_that_may_be_later(
    tmp_path: Path, files: dict[str, list[str]], first: tuple[str, int] | None
) -> None:
    """Without a time lines of one file have an order, and lines of two have none."""
    for name, lines in files.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    said = run(tmp_path)
    told = said["first_symptom"]
    if first is None:
        assert told == said["evidence"][0]
    else:
        assert (Path(told["file"]).name, told["line"]) == first


def test_empty_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.log").touch()
    done = CliRunner().invoke(cli, ["diagnose", str(tmp_path / "a.log")])
    assert done.exit_code == 3 and "1 file (1 empty), 0 lines read" in done.output
    (tmp_path / "b.log").write_text(GOOD)
    assert run(tmp_path)["read"]["empty"] == 1
    assert "empty" not in CliRunner().invoke(cli, ["diagnose", str(tmp_path / "b.log")]).output
