"""`superv init`: a first job.yaml, from a few questions or options."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.numbers import Number
from supervisor.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from supervisor.config.draft import Draft
    from supervisor.doctor.offered import Offered, OfferedPartition

KINDS = ("torchtitan", "ddp", "command")


@click.command()
@click.argument(
    "job_file",
    metavar="[FILE]",
    default="job.yaml",
    type=click.Path(path_type=Path, readable=False),
)
@click.option("--kind", metavar="|".join(KINDS), help="What trains.")
@click.option("--name", help="The run's name; the folder's, if not given.")
@click.option("--nodes", type=Number(1, 100_000, whole=True), help="Nodes that train.")
@click.option("--spares", type=Number(0, 10_000, whole=True), help="Nodes that wait.")
@click.option("--ranks", type=Number(1, 1024, whole=True), help="Ranks on each node.")
@click.option("--local", is_flag=True, help="On this machine alone, without Slurm.")
@click.option("--partition", help="Slurm's partition.")
@click.option("--account", help="Slurm's account.")
@click.option("--gres", help="Generic resources of each node, as gpu:8.")
@click.option("--time", "limit", help="The allocation's limit, as 14-00:00:00.")
@click.option("--python", help="The trainer's interpreter.")
@click.option("--run", "program", metavar="WORDS", help="Module, script or command, and arguments.")
@click.option("--save", "save_dir", metavar="DIRECTORY", help="Where checkpoints go.")
@click.option("--yes", is_flag=True, help="Ask nothing: take what is usual.")
@click.option("--dry-run", is_flag=True, help="Print the file; write nothing.")
def init(job_file: Path, dry_run: bool, yes: bool, **given: Any) -> None:
    """Write a commented job file, and never over another one.

    What is not given is asked for on a terminal; partitions, GPUs and the account come from Slurm
    where it answers.
    """
    from supervisor.config import draft as drafts
    from supervisor.config import parse_job

    if not dry_run and job_file.exists():
        raise UserError(f"{job_file}: there already; name another file, or remove it")
    if given["kind"] not in (None, *KINDS):
        raise UserError(f"--kind {given['kind']}: expected one of {', '.join(KINDS)}")
    asked = Questions(given, ask=sys.stdin.isatty() and not yes)
    made = drafted(asked, job_file)
    text = drafts.text(made, job_file)
    parse_job(text, job_file)  # raises for values that no job file takes
    if dry_run:
        click.echo(text, nl=False)
        _tell(asked.guessed)
        return
    try:
        with job_file.open("x") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{job_file}: can't be written: {error.strerror}") from error
    click.echo(f"wrote {job_file}; look at it, then `superv doctor {job_file}`")
    _tell(asked.guessed)


def _tell(guessed: dict[str, str]) -> None:
    """What nobody said and nobody was asked, as the options that say it; on standard error."""
    from supervisor.host import terminal

    if guessed:
        options = "  ".join(f"{name} {shlex.quote(value)}" for name, value in guessed.items())
        told = [terminal.entry("guessed", options, 9)]
        page = terminal.rendered(told, colour=False, columns=terminal.width())
        click.echo(page, nl=False, err=True)


class Questions:
    """What options say, and what is asked for where they don't."""

    def __init__(self, given: dict[str, Any], *, ask: bool) -> None:
        self._given, self._ask = given, ask
        self.guessed: dict[str, str] = {}  # by option: what is usual, taken without a question

    def given(self, key: str) -> Any:
        return self._given[key]

    def answer(self, key: str, question: str, usual: Any, type_: Any = str) -> Any:
        """The option's value, else the answer on the terminal, else what is usual."""
        if self._given[key] is not None:
            return self._given[key]
        if not self._ask:
            self.guessed[_OPTIONS.get(key, f"--{key}")] = str(usual)
            return usual
        return click.prompt(question, default=usual, type=type_, err=True)

    def choice(self, key: str, question: str, usual: str, choices: Mapping[str, str]) -> Any:
        """As `answer`; on a terminal the choices stand in lines, and a number takes one."""
        if self._ask and self._given[key] is None:
            click.echo(question, err=True)
            wide = max(map(len, choices))
            for number, (name, meaning) in enumerate(choices.items(), 1):
                click.echo(f"  {number} {name:{wide}}  {meaning}".rstrip(), err=True)
        return self.answer(key, "Number or name", usual, Numbered(tuple(choices)))


class Numbered(click.ParamType[str]):
    """One of some words, or its number from 1."""

    name = "choice"

    def __init__(self, words: tuple[str, ...]) -> None:
        self._words = words

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in self._words:
            return value
        if value.isdecimal() and 1 <= int(value) <= len(self._words):
            return self._words[int(value) - 1]
        self.fail(f"{value}: expected 1 to {len(self._words)}, or one of {', '.join(self._words)}")


_OPTIONS = {"program": "--run", "save_dir": "--save", "limit": "--time"}


def drafted(asked: Questions, job_file: Path) -> Draft:
    """The job, as far as options, Slurm and a person say. Raises UserError."""
    import asyncio

    from supervisor.config.draft import KINDS as MEANINGS
    from supervisor.config.draft import Draft
    from supervisor.doctor.offered import Offered, ask

    kind = asked.choice("kind", "What trains?", "torchtitan", MEANINGS)
    name = asked.answer("name", "The run's name", _name(job_file))
    offered = Offered(why="as asked") if asked.given("local") else asyncio.run(ask())
    slurm, there = _slurm(asked, offered)
    size = there.nodes if there else 0
    spare = 0 if 0 < size < 3 else 3 if size > 40 else 1
    spares = asked.answer("spares", "Spare nodes, which wait", spare, Number(0, 10_000, whole=True))
    usual = max(1, size - spares) if size else 2
    nodes = asked.answer("nodes", "Nodes that train", usual, Number(1, 100_000, whole=True))
    gpus = there.gpus if there and kind != "command" else 1  # a command starts its own, mostly
    often = "How often it is started" if kind == "command" else "Ranks, usually one a GPU,"
    ranks = asked.answer("ranks", f"{often} on each node", gpus or 1, Number(1, 1024, whole=True))
    program, args = _program(asked, kind)
    handoff, more = _handoff(kind, [*program, *args], job_file)
    saves = asked.given("save_dir") or ("checkpoint" if kind == "torchtitan" or handoff else "")
    if saves and kind != "torchtitan" and not handoff:
        handoff = "env"
    return Draft(
        name=name,
        kind=kind,
        nodes=nodes,
        spares=spares,
        ranks=ranks,
        program=program,
        args=[*args, *(more if saves else ())],
        python=_python(asked) if kind != "command" else "",
        slurm=slurm,
        notes=_notes(kind, offered, there),
        save_dir=saves,
        handoff=handoff or "none",
    )


def _name(job_file: Path) -> str:
    import re

    folder = job_file.absolute().parent.name.lower()
    return re.sub(r"[^a-z0-9-]+", "-", folder).strip("-")[:41] or "run"


def _slurm(
    asked: Questions, offered: Offered
) -> tuple[dict[str, str] | None, OfferedPartition | None]:
    """Options of sbatch, and the partition that they ask for; None: this machine alone."""
    wanted = any(asked.given(key) for key in ("partition", "account", "gres", "limit"))
    if asked.given("local") and wanted:
        raise UserError("--local: there is no partition, account, gres or time without Slurm")
    if asked.given("local") or (not offered.partitions and not wanted):
        return None, None
    known = {partition.name: partition for partition in offered.partitions}
    usual = next((p.name for p in offered.partitions if p.default), next(iter(known), ""))
    offers = {p.name: f"{p.nodes} nodes, {p.gpus} GPUs each" for p in offered.partitions}
    name = (
        asked.choice("partition", "Partition?", usual, offers)
        if offers
        else asked.answer("partition", "Partition", usual)
    )
    if known and name not in known:
        raise UserError(f"--partition {name}: Slurm has no such one; there: {', '.join(known)}")
    there = known.get(name)
    found = {
        "partition": name,
        "account": asked.answer("account", "Account", offered.account)
        if offered.account or asked.given("account")
        else "",
        "gres": asked.given("gres") or (there.gres if there else ""),
        "time": asked.given("limit") or (there.time if there else "") or "1-00:00:00",
    }
    return {key: value for key, value in found.items() if value}, there


def _notes(kind: str, offered: Offered, there: OfferedPartition | None) -> dict[str, str]:
    notes = {
        "nodes": "that train",
        "spares": "that wait to take a lost one's place",
        "time": "the allocation's limit; superv asks for the next one by itself",
        "ranks_per_node": "how often the command is started; 1 where it starts ranks itself"
        if kind == "command"
        else "usually one for each GPU",
        "python": "the environment that has torch, where all nodes see it",
        "dir": "where all nodes see it; each attempt saves into a folder of its own",
    }
    if there is not None:
        notes["partition"] = f"{there.nodes} nodes; there: " + ", ".join(
            partition.name for partition in offered.partitions
        )
    return notes


_USUAL: dict[str, str] = {
    "torchtitan": "torchtitan.train --module llama3 --config llama3_8b",
    "ddp": "train.py",
    "command": "./train.sh",
}
_ASKED: dict[str, str] = {
    "torchtitan": "Module and arguments",
    "ddp": "Script and arguments",
    "command": "Command",
}


def _program(asked: Questions, kind: str) -> tuple[list[str], list[str]]:
    """The module, script or command, and its arguments. Raises UserError."""
    line = asked.answer("program", _ASKED[kind], _USUAL[kind])
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise UserError(f"--run {line}: {str(error).lower()}") from error
    if not words:
        raise UserError(f"--run: expected {_ASKED[kind].lower()}, as {_USUAL[kind]!r}")
    return (words, []) if kind == "command" else (words[:1], words[1:])


def _python(asked: Questions) -> str:
    import os

    venv = os.environ.get("VIRTUAL_ENV", "")
    usual = f"{venv}/bin/python" if venv.startswith("/") else "python3"
    return str(asked.answer("python", "The trainer's Python", usual))


# Options of scripts by which superv tells where to save and what to resume; the last may lack.
_TOLD = {
    "--save-dir": "{save_dir}",
    "--resume-path": "{resume_path}",
    "--resume-step": "{resume_step}",
}


def _handoff(kind: str, words: list[str], job_file: Path) -> tuple[str, list[str]]:
    """How a program is told where to save, as its words and a script's text show; and what to add.

    An option that is given stays as it is: nothing is said twice.
    """
    from supervisor.doctor.look_at_files import script_options

    if kind == "torchtitan":  # its hook tells it
        return "", []
    used = {told for told in _TOLD.values() if any(told in word for word in words)}
    saves, resumes = "{save_dir}" in used, bool(used - {"{save_dir}"})
    if saves and resumes:
        return "args", []
    partly = "env" if used else ""  # the rest by variables
    if kind != "ddp":
        return partly, []
    script = job_file.absolute().parent / words[0]
    try:
        text, options = script.read_text(errors="replace"), script_options(str(script)) or []
    except (OSError, SyntaxError, ValueError):
        return partly, []
    given = {word.partition("=")[0] for word in words[1:]}
    fixed = {option for option in given & {*_TOLD} if _TOLD[option] not in used}
    if {"--save-dir", "--resume-path"} <= {*options} and not fixed:
        missing = [option for option in _TOLD if option in options and option not in given]
        return "args", [word for option in missing for word in (option, _TOLD[option])]
    return ("env", []) if "SUPERV_SAVE_DIR" in text else (partly, [])
