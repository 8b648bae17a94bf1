"""`superv init`: what it writes is a valid job file, from options, answers or Slurm's word."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from supervisor.config import Job, load_job, parse_job
from supervisor.config.draft import KINDS, Draft, scalar, text
from supervisor.doctor.offered import parse

SINFO = """\
train*|60|gpu:b200:8(S:0-1)|14-00:00:00|up
train*|3|(null)|14-00:00:00|up
debug|2|gpu:8,shard:16|1:00:00|up
old|9|(null)|infinite|down
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, and a Slurm of one partition, as programs on PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in (("sinfo", f"cat <<'END'\n{SINFO}END"), ("sacctmgr", "echo llm")):
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    (tmp_path / "my_run").mkdir()
    return tmp_path / "my_run"


def superv(here: Path, *argv: str, rc: int = 0) -> str:
    whole = [sys.executable, "-m", "supervisor.cli", *argv]
    done = subprocess.run(
        whole, cwd=here, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    assert done.returncode == rc, done.stdout + done.stderr
    return done.stdout if rc == 0 else done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_writes_is_valid_and_takes_slurms_word(here: Path, kind: str) -> None:
    assert "wrote job.yaml" in superv(here, "init", "--kind", kind)
    job = load_job(here / "job.yaml")
    assert (job.name, job.nodes, job.spares, job.trainer.ranks_per_node) == (
        *("my-run", 60, 3),
        1 if kind == "command" else 8,
    )
    wanted = {"partition": "train", "account": "llm", "gres": "gpu:b200:8", "time": "14-00:00:00"}
    assert job.slurm == wanted
    assert (job.trainer.hook == "torchtitan") is (kind == "torchtitan")
    superv(here, "launch", "--dry-run", "job.yaml")


def test_options_come_before_what_is_usual(here: Path) -> None:
    argv = ["--kind", "command", "--name", "b", "--nodes", "2", "--spares", "0", "--ranks", "4"]
    argv += ["--partition", "debug", "--account", "a", "--gres", "gpu:4", "--time", "30"]
    superv(here, "init", "b.yaml", *argv, "--run", "./go.sh 'two words'", "--save", "/s")
    job = load_job(here / "b.yaml")
    assert (job.name, job.nodes, job.spares, job.trainer.ranks_per_node) == ("b", 2, 0, 4)
    assert job.slurm == {"partition": "debug", "account": "a", "gres": "gpu:4", "time": "30"}
    assert job.trainer.command == ("./go.sh", "two words")
    assert job.checkpoints is not None and job.checkpoints.handoff == "env"


def test_without_slurm_it_is_for_this_machine(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin/nothing")
    superv(here, "init", "--kind", "ddp")
    job = load_job(here / "job.yaml")
    assert (job.launcher, job.nodes, job.spares, dict(job.slurm)) == ("local", 2, 1, {})


@pytest.mark.parametrize(
    ("script", "args", "handoff"),
    [
        ("import os\nos.environ['SUPERV_SAVE_DIR']\n", (), "env"),
        (
            "import argparse\np = argparse.ArgumentParser()\np.add_argument('--save-dir')\n"
            "p.add_argument('--resume-path')\np.parse_args()\n",
            ("--save-dir", "{save_dir}", "--resume-path", "{resume_path}"),
            None,
        ),
        ("print(1)\n", (), "no checkpoints"),
    ],
)
def test_how_a_script_learns_where_to_save_is_read_from_it(
    here: Path, script: str, args: tuple[str, ...], handoff: str | None
) -> None:
    (here / "go.py").write_text(script)
    superv(here, "init", "--kind", "ddp", "--run", "go.py")
    job = load_job(here / "job.yaml")
    told = job.checkpoints.handoff if job.checkpoints else "no checkpoints"
    assert (job.trainer.args, told) == (args, handoff)


ARGPARSE = """import argparse
p = argparse.ArgumentParser()
p.add_argument("--save-dir")
p.add_argument("--resume-path")
p.add_argument("--resume-step")
p.parse_args()
"""
SAVE, RESUME = ["--save-dir", "{save_dir}"], ["--resume-path", "{resume_path}"]
STEP = ["--resume-step", "{resume_step}"]


@pytest.mark.parametrize(
    ("kind", "said", "args", "handoff"),
    [
        ("ddp", "", [*SAVE, *RESUME, *STEP], None),
        ("ddp", "--save-dir {save_dir}", [*SAVE, *RESUME, *STEP], None),
        ("ddp", "--save-dir={save_dir}", ["--save-dir={save_dir}", *RESUME, *STEP], None),
        ("ddp", "--resume-step {resume_step}", [*STEP, *SAVE, *RESUME], None),
        ("ddp", "--resume-path {resume_path}", [*RESUME, *SAVE, *STEP], None),
        ("ddp", "--out {save_dir} --from {resume_path}", None, None),
        ("ddp", "--save-dir /mine", None, "no checkpoints"),
        ("command", "--save-dir {save_dir} --resume-path {resume_path}", None, None),
        ("command", "--save-dir {save_dir}", None, "env"),
        ("command", "", None, "no checkpoints"),
    ],
)
def test_what_is_said_already_is_not_said_again(
    here: Path, kind: str, said: str, args: list[str] | None, handoff: str | None
) -> None:
    """`args` is None where nothing is added to what was said."""
    (here / "go.py").write_text(ARGPARSE)
    superv(here, "init", "--yes", "--local", "--kind", kind, "--run", f"go.py {said}")
    job = load_job(here / "job.yaml")
    got = job.trainer.args if kind == "ddp" else (job.trainer.command or ())[1:]
    told = job.checkpoints.handoff if job.checkpoints else "no checkpoints"
    assert (list(got), told) == (said.split() if args is None else args, handoff)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--kind", "jax"], "--kind jax: expected one of torchtitan, ddp, command"),
        (["--nodes", "x"], "--nodes x: expected a whole number, 1 to 100000"),
        (["--name", "Big"], 'name: expected 1 to 41 of a-z, 0-9 and -, no - first, got "Big"'),
        (["--partition", "trian"], "--partition trian: Slurm has no such one; there: train, debug"),
        (["--run", "a 'b"], "--run a 'b: no closing quotation"),
        (["--run", ""], "--run: expected"),
        (["--local", "--gres", "gpu:8"], "without Slurm"),
        (["--time", "soon"], "slurm.time: expected minutes"),
        (["nowhere/job.yaml"], "nowhere/job.yaml: can't be written: No such file or directory"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    here: Path, argv: list[str], says: str
) -> None:
    told = superv(here, "init", "--yes", *argv, rc=2)
    assert says in told and told.count("\n") == 1
    assert list(here.iterdir()) == []


def test_it_writes_over_nothing(here: Path) -> None:
    (here / "job.yaml").write_text("mine\n")
    told = superv(here, "init", "--kind", "ddp", rc=2)
    assert told == "superv: job.yaml: there already; name another file, or remove it\n"
    assert (here / "job.yaml").read_text() == "mine\n"


def test_a_dry_run_prints_and_writes_nothing(here: Path) -> None:
    printed = superv(here, "init", "--kind", "torchtitan", "--dry-run")
    assert parse_job(printed, here / "job.yaml").trainer.module == "torchtitan.train"
    assert list(here.iterdir()) == []


def test_questions_are_asked_on_a_terminal(here: Path) -> None:
    """Answers of each kind: what is usual, something else, and a word that is not among them."""
    main, theirs = pty.openpty()
    argv = [sys.executable, "-m", "supervisor.cli", "init"]
    child = subprocess.Popen(argv, cwd=here, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen, answers = "", iter(["jax", "9", "2", "", "2", "", "0", "", "2", "go.py --x 1", ""])
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            piece = os.read(main, 4096).decode(errors="replace")
        except OSError:  # the child has closed it
            break
        seen += piece
        if piece.rstrip(" ").endswith(":") and (answer := next(answers, None)) is not None:
            os.write(main, f"{answer}\n".encode())
    os.close(main)
    assert child.wait(timeout=30) == 0, seen
    job = load_job(here / "job.yaml")
    assert (job.slurm["partition"], job.spares, job.nodes) == ("debug", 0, 2)
    assert max(map(len, seen.splitlines())) <= 100 and "guessed" not in seen
    assert (job.trainer.ranks_per_node, job.trainer.args) == (2, ("--x", "1"))


def test_what_was_guessed_is_told_as_options_that_say_it(here: Path) -> None:
    """What they say again gives the same file, and nothing is left to guess."""
    argv = [sys.executable, "-m", "supervisor.cli", "init", "--nodes", "5", "--dry-run"]

    def run(*more: str) -> tuple[str, str]:
        done = subprocess.run(
            [*argv, *more], cwd=here, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    file, told = run()
    assert told.startswith("guessed  --kind torchtitan  --name my-run  --partition train")
    assert "--nodes" not in told and max(map(len, told.splitlines())) <= 100
    assert run(*shlex.split(told.removeprefix("guessed"))) == (file, "")


def test_what_sinfo_says() -> None:
    train, debug = parse(SINFO)
    assert (train.default, train.nodes, train.gpus, train.time) == (True, 63, 8, "14-00:00:00")
    assert (debug.default, debug.gpus, debug.gres) == (False, 8, "gpu:8,shard:16")
    assert parse("garbage\n|||\n") == []


@given(st.text(min_size=1, max_size=30))
def test_a_scalar_is_read_as_it_was(value: str) -> None:
    if not value.isprintable():
        return
    assert yaml.safe_load(scalar(value)) == value


@given(st.lists(st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1), max_size=4))
def test_arguments_of_any_text_are_kept(args: list[str]) -> None:
    draft = Draft(
        name="a", kind="command", nodes=1, spares=0, ranks=1, program=["x"], args=args, slurm={}
    )
    plain = [arg for arg in args if "{" not in arg]  # a misspelt placeholder is refused
    if plain != args:
        return
    job: Job = parse_job(text(draft, Path("job.yaml")), Path("job.yaml"))
    assert list(job.trainer.args) == args
