"""superv nccl: the variables that NCCL knows, and what is wrong in an environment."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli import Commands
from supervisor.cli.numbers import Number
from supervisor.core.errors import UserError
from supervisor.host import terminal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ncclconf.catalogue import Variable, Version
    from ncclconf.environment import Environment
    from ncclconf.facts import Facts
    from ncclconf.lint import LintFinding

SCHEMA = 1
STYLES = {"error": "red", "warning": "yellow", "advice": "cyan"}
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_nccl = click.option("--nccl", "release", metavar="VERSION", help="The NCCL release, as 2.28.3.")


@click.group(cls=Commands)
def nccl() -> None:
    """NCCL's variables: what there is, and what is wrong in an environment."""


@nccl.command("vars")
@click.argument("pattern", required=False, default="")
@_nccl
@_json
def variables(pattern: str, release: str | None, as_json: bool) -> None:
    """List the variables whose name or meaning holds PATTERN (any case); all without one.

    With --nccl those that this release reads.
    """
    from ncclconf.catalogue import catalogue

    version = _version(release)
    wanted = pattern.lower()
    found = [
        v
        for v in catalogue().values()
        if (wanted in v.name.lower() or wanted in v.meaning.lower())
        and (version is None or v.owner != "nccl" or v.read_by(version))
    ]
    if as_json:
        _print({"schema": SCHEMA, "variables": [_row(v) for v in found]})
        return
    if not found:
        raise UserError(f"no variable holds {pattern!r}; superv nccl vars lists all")
    columns = (
        terminal.TableColumn("VARIABLE"),
        terminal.TableColumn("DEFAULT", most=14),
        terminal.TableColumn("MEANING", folds=True),
    )
    rows = [(v.name, v.default, v.meaning) for v in found]
    terminal.show([terminal.table(columns, rows)])


@nccl.command()
@click.argument("names", metavar="VARIABLE…", nargs=-1, required=True)
@_json
def explain(names: tuple[str, ...], as_json: bool) -> None:
    """Say all that is known of variables, and which rules look at them."""
    from ncclconf.catalogue import closest, lookup

    found = []
    for name in names:
        wanted = name.upper()
        variable = lookup(wanted) or lookup(f"NCCL_{wanted}")
        if variable is None:
            meant = closest(wanted)
            more = f"; did you mean {meant}?" if meant else ""
            raise UserError(f"no variable {name} is known{more}; superv nccl vars lists all")
        found.append(variable)
    if as_json:
        _print({"schema": SCHEMA, "variables": [_row(v) for v in found]})
        return
    terminal.show(line for variable in found for line in _explained(variable))


@nccl.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--env",
    "script",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A job script or a file of variables; as FILE.",
)
@click.option(
    "--job",
    type=click.Path(dir_okay=False, path_type=Path),
    help="trainer.env of a job.yaml, and of nothing else.",
)
@click.option("--pid", type=Number(1, 2**22, whole=True), help="The environment of a process.")
@click.option("--nodes", type=Number(1, 100_000, whole=True), help="How many nodes take part.")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("/"),
    help="Read /sys, /proc and /etc below here.",
)
@_nccl
@_json
def lint(
    file: Path | None,
    script: Path | None,
    job: Path | None,
    pid: int | None,
    nodes: int | None,
    root: Path,
    release: str | None,
    as_json: bool,
) -> None:
    """Say what is wrong in an environment: this shell's, or that of a file, a job or a process.

    FILE is a job script, a file of variables, an nccl.conf or a job.yaml: its content tells which.
    Where this machine has a GPU or an RDMA device it is judged with it. NCCL's own files
    (NCCL_CONF_FILE or ~/.nccl.conf, /etc/nccl.conf) count as they do for NCCL.

    Exit code 0: no error; 1: errors; 2: what was asked can't be looked at.
    """
    from ncclconf.lint import Severity
    from ncclconf.lint import lint as held_against

    if sum(one is not None for one in (file, script, job, pid)) > 1:
        raise UserError("FILE, --env, --job and --pid are things to look at: give one")
    script = file or script
    if script is not None and _is_job(_text_of(script)):
        script, job = None, script
    if job is not None:
        env, job_nodes = _of_job(job, root)
        nodes = nodes or job_nodes
    else:
        env = _environment(script, pid, root)
    looked_at = str(job or script or "")
    known = _facts(env, root, _version(release), nodes, pid)
    found = held_against(env, known)
    errors = sum(f.severity is Severity.ERROR for f in found)
    if as_json:
        _print(_document(env, known, found, looked_at))
    else:
        terminal.show(_page(env, known, found, looked_at))
    if errors:
        raise SystemExit(1)


def _version(text: str | None) -> Version | None:
    from ncclconf.catalogue import version

    try:
        return version(text or "")
    except ValueError as error:
        raise UserError(f"--nccl: {error}") from None


def _text_of(path: Path) -> str:
    """Raises UserError."""
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _is_job(text: str) -> bool:
    """Whether it is a job.yaml: the key that none lacks, at the margin; no script has it."""
    import re

    return not text.startswith("#!") and bool(re.search(r"^(trainer|\{ *name)\s*:", text, re.M))


def _environment(script: Path | None, pid: int | None, root: Path) -> Environment:
    """Raises UserError where it can't be read."""
    from ncclconf.environment import ConfFile, Environment, of_node, of_script

    if script is not None:
        text = _text_of(script)
        if script.name in ("nccl.conf", ".nccl.conf"):
            return Environment.of(files=[ConfFile.parsed(text, str(script))])
        return Environment.of(of_script(text, str(script)))
    if pid is None:
        return of_node(os.environ, "this shell", root, os.environ.get("HOME", ""))
    try:
        raw = (root / f"proc/{pid}/environ").read_bytes()
    except OSError as error:
        why = "no such process" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(f"--pid {pid}: {why}") from None
    pairs = (item.partition("=") for item in raw.decode(errors="replace").split("\0"))
    values = {name: value for name, equals, value in pairs if equals}
    return of_node(values, f"process {pid}", root, values.get("HOME", ""))


def _of_job(path: Path, root: Path) -> tuple[Environment, int]:
    """What the ranks of a job would see on a node like this one, and how many nodes it has."""
    from ncclconf.environment import of_node
    from supervisor.config import load_job

    job = load_job(path)
    return of_node(job.trainer.env, str(path), root, os.environ.get("HOME", "")), job.nodes


def _facts(
    env: Environment,
    root: Path,
    release: Version | None,
    nodes: int | None,
    pid: int | None,
) -> Facts:
    """Of this machine too, where it has a GPU or an RDMA device: a login node is no node."""
    import time

    from healthchecks.frame.context import Ctx, Memory
    from healthchecks.frame.settings import of_site
    from healthchecks.sources.nccl_facts import facts
    from ncclconf.facts import Facts
    from ncclconf.rules.host import FILES
    from supervisor.config import load_site
    from supervisor.core.setting import PORT_ROLES

    settings = of_site(load_site(os.environ), ())
    now = time.time()
    ctx = Ctx(
        root=root,
        node="",
        now=now,
        boot_id="",
        memory=Memory({}, now),
        site={PORT_ROLES: settings.get(PORT_ROLES, {})},
    )
    named = [env.settings[name].text for name in FILES if name in env.settings]
    limits = f"proc/{pid or 'self'}/limits"
    known = facts(ctx, nccl=release, nodes=nodes, files=named, limits=limits)
    return known if known.gpus or known.hcas else Facts(nccl=release, nodes=nodes)


# --- what is printed ------------------------------------------------------------------------------


def _print(document: dict[str, Any]) -> None:
    import json

    click.echo(json.dumps(document, indent=2))


def _row(v: Variable) -> dict[str, Any]:
    from ncclconf.catalogue import written

    row = asdict(v)
    row["class"] = row.pop("kind")
    for key in ("since", "until"):
        row[key] = written(row[key]) if row[key] else None
    return row


def _explained(v: Variable) -> Iterator[Any]:
    from ncclconf.catalogue import written
    from ncclconf.lint import rules

    yield terminal.styled((v.name, "bold"))
    rows = [
        ("", v.meaning),
        ("read by", {"nccl": "NCCL", "ofi": "the libfabric plugin"}.get(v.owner, v.owner)),
        ("type", v.type),
        ("default", v.default or "-"),
        ("valid", v.valid or "-"),
        ("since", written(v.since) if v.since else "-"),
        ("until", f"gone with {written(v.until)}" if v.until else "-"),
        ("class", f"{v.kind}, {v.fabric}"),
        ("evidence", f"its name in {v.evidence}" if v.evidence else "documents and sources alone"),
    ]
    looked = [
        one.id for one in rules() if any(v.name in example.env for example in one.wrong + one.right)
    ]
    rows.append(("rules", ", ".join(looked) or "-"))
    yield terminal.facts([(label, text) for label, text in rows], 10)
    yield ""


def _nothing_in(env: Environment, looked_at: str) -> str:
    """What is said of a file in which no variable was found, as that is no all-clear; or empty."""
    if not looked_at or env.settings or env.raw:
        return ""
    return (
        f"no variable was found in {looked_at}, so nothing was judged; understood are NAME=VALUE, "
        "export, mpirun's -x and --export of Slurm, the lines of an nccl.conf, and trainer.env of "
        "a job.yaml"
    )


def _document(
    env: Environment, known: Facts, found: Iterable[LintFinding], looked_at: str
) -> dict[str, Any]:
    from ncclconf.catalogue import written

    return {
        "schema": SCHEMA,
        "nccl": written(known.nccl) if known.nccl else None,
        "variables": {name: one.text for name, one in sorted(env.settings.items())},
        "nothing_in": _nothing_in(env, looked_at) or None,
        "findings": [
            {
                "rule": f.rule.id,
                "severity": str(f.severity),
                "variables": list(f.hit.names),
                "where": f.where,
                "seen": f.hit.seen,
                "why": f.rule.why,
                "fix": f.fix,
                "source": f.rule.source,
            }
            for f in found
        ],
    }


def _page(
    env: Environment, known: Facts, found: list[LintFinding], looked_at: str
) -> Iterator[Any]:
    for f in found:
        yield terminal.styled((f"{f.severity:8}", STYLES[f.severity]), f.rule.id)
        yield terminal.entry("", f"{f.hit.seen}{f' ({f.where})' if f.where else ''}", 8)
        yield terminal.entry("", f"why: {f.rule.why}", 8)
        yield terminal.entry("", f"→ {f.fix}", 8)
    told = [
        f"{n} {s}{'s' if n > 1 and s != 'advice' else ''}"
        for s in STYLES
        if (n := sum(f.severity == s for f in found))
    ]
    nothing = _nothing_in(env, looked_at)
    count = len(env.settings)
    if nothing:
        yield terminal.entry("", nothing, 0)
    else:
        plural = "" if count == 1 else "s"
        yield f"{count} variable{plural}: {', '.join(told) or 'nothing to say'}"
    if known.hcas is None:
        yield "note: this is no node with GPUs or a fabric: rules about nodes kept quiet"
    if known.nccl is None:
        yield "note: rules about releases of NCCL kept quiet: say which one (--nccl 2.28.3)"
