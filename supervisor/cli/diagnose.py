"""`superv diagnose`: what ended a job, from its logs alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from supervisor.host import terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervisor.core.verdict import Diagnosis
    from supervisor.diagnosis.scan import LogScan

PAGE = "docs/causes.md"


@click.command()
@click.argument("paths", nargs=-1, metavar="FILE|DIR...")
@click.option(
    "--nodes",
    metavar="LIST",
    default="",
    help="The job's nodes in order, as Slurm writes them (n[01-60]): says where each rank ran.",
)
@click.option(
    "--kmsg",
    "kernel",
    metavar="[NODE=]FILE|DIR",
    multiple=True,
    help="Kernel logs (dmesg, journalctl -k, syslog); may be given often.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def diagnose(paths: tuple[str, ...], nodes: str, kernel: tuple[str, ...], as_json: bool) -> None:
    """Say what ended a job, from its logs: any job's, whether it ran under superv or not.

    Reads Slurm's output files, one file a rank, torchrun's log folders, kernel logs and flight
    recorder dumps, plain or gzipped. Exit status: 0 with a cause, 3 where none is recognised.
    """
    from supervisor.core.errors import UserError
    from supervisor.core.nodeset import expand
    from supervisor.core.verdict import diagnosed
    from supervisor.diagnosis.inputs import find
    from supervisor.diagnosis.scan import scan
    from supervisor.signatures import UNKNOWN, load

    if not paths and not kernel:
        raise UserError("no logs given; name files or folders, as slurm-1234.out or logs/")
    try:
        names = expand(nodes) if nodes else ()
    except ValueError as error:
        raise UserError(f"--nodes: {error}") from error
    found = find(paths, names)
    more = find(kernel, names, kernel=True)
    found.files += more.files
    found.problems += more.problems
    if not found.files:
        said = found.problems[0] if found.problems else "no files there"
        raise UserError(f"nothing to read: {said}")
    with terminal.StatusLine("reading") as line:
        scanned = scan(
            found,
            load(),
            nodes=names,
            progress=lambda done, of: line.update(
                f"{done / 1e6:.0f} of {of / 1e6:.0f} MB" if of > 64e6 else "reading"
            ),
        )
    result = diagnosed(scanned.sightings, scanned.shape, load())
    if as_json:
        import json

        click.echo(json.dumps(document(result, scanned), indent=2))
    else:
        terminal.show(_page(result, scanned))
    raise SystemExit(3 if result.cause.name == UNKNOWN else 0)


def document(result: Diagnosis, scanned: LogScan) -> dict[str, Any]:
    """As docs/diagnose.md describes it."""
    return {
        "cause": result.cause.name,
        "class": result.cause.kind.value,
        "short": result.cause.short,
        "culprits": [_culprit(one) for one in result.culprits],
        "confidence": result.confidence.value,
        "why": result.why,
        "evidence": [_line(one) for one in result.evidence],
        "first_symptom": _line(result.first_symptom) if result.first_symptom else None,
        "suspects": [_culprit(one) for one in result.suspects],
        "decide": result.decide,
        "other_causes": [
            {"cause": one.signature.cause.name, **_line(one)} for one in result.others
        ],
        "alone": [
            {"place": one.place, "file": one.source, "line": one.line, "text": one.text}
            for one in scanned.alone
        ],
        "last_step": scanned.shape.last_step,
        "do": result.cause.do,
        "runbook": f"{PAGE}#{result.cause.name}",
        "read": {
            "files": scanned.files,
            "empty": scanned.empty,
            "bytes": scanned.bytes,
            "lines": scanned.lines,
        },
        "problems": scanned.problems,
    }


def _culprit(one: Any) -> dict[str, Any]:
    return {"node": one.node or None, "rank": one.rank, "gpu": one.gpu or None}


def _line(one: Any) -> dict[str, Any]:
    return {
        "signature": one.signature.id,
        "role": one.signature.role.value,
        "node": one.node or None,
        "rank": one.rank,
        "gpu": one.gpu or None,
        "at": one.at,
        "file": one.source,
        "line": one.line,
        "text": one.text,
        "count": one.count,
    }


def _page(result: Diagnosis, scanned: LogScan) -> Iterator[Any]:
    cause = result.cause
    named = "; ".join(map(str, result.culprits)) or "nobody"
    if result.culprits:
        named += f" ({result.confidence})"
    yield terminal.entry("cause", f"{cause.name} ({cause.kind}): {cause.short}", 10)
    yield terminal.entry("blamed", named, 10)
    if result.why:
        yield terminal.entry("why", result.why, 10)
    if result.suspects:
        yield terminal.entry("look at", "; ".join(map(str, result.suspects)), 10)
    if result.decide:
        yield terminal.entry("surer by", result.decide, 10)
    yield terminal.entry("do", cause.do, 10)
    yield terminal.entry("more", f"{PAGE}#{cause.name}", 10)
    if result.evidence:
        yield ""
    for one in result.evidence:
        yield terminal.entry("says so", _shown(one), 10)
    first = result.first_symptom
    if first is not None and first not in result.evidence:
        yield terminal.entry("first", _shown(first), 10)
    for one in result.others:
        yield terminal.entry("also", f"{one.signature.cause.name}: {_shown(one)}", 10)
    for line in scanned.alone:
        where = f"{line.source.rpartition('/')[2]}:{line.line}"
        yield terminal.entry("only", f"{line.place}: {line.text[:200]} [{where}]", 10)
    yield ""
    step = scanned.shape.last_step
    files = f"{scanned.files} file{'' if scanned.files == 1 else 's'}"
    files += f" ({scanned.empty} empty)" if scanned.empty else ""
    yield (
        f"{files}, {scanned.lines} lines read" + (f"; last step {step}" if step is not None else "")
    )
    for problem in scanned.problems[:20]:
        yield f"not read: {problem}"
    if len(scanned.problems) > 20:
        yield f"not read: {len(scanned.problems) - 20} more"


def _shown(one: Any) -> str:
    from datetime import UTC, datetime

    at = f"{datetime.fromtimestamp(one.at, UTC):%m-%d %H:%M:%S} " if one.at is not None else ""
    who = ", ".join(
        part for part in (one.node, f"rank {one.rank}" if one.rank is not None else "") if part
    )
    often = f" ({one.count} times)" if one.count > 1 else ""
    where = f"{one.source.rpartition('/')[2]}:{one.line}"
    return f"{at}{who + ': ' if who else ''}{one.text[:300]}{often} [{where}]"
