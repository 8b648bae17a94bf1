"""`superv nodes`: what the fleet record, and users, say of nodes."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli.node_names import nodes_argument
from supervisor.host import terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervisor.config import Site
    from supervisor.fleet.out_of_use import OutOfUse
    from supervisor.fleet.record import Fleet
    from supervisor.fleet.types import NodeHealth
    from supervisor.host.terminal import Text

MAX_NAME = 24  # columns of the table
MAX_HISTORY = 40  # changes
MAX_REASON = 300  # characters
LONGEST_S = 366 * 86_400.0
_UNITS = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


@click.command()
@nodes_argument(required=False)
@click.option("--all", "everything", is_flag=True, help="Also list the healthy nodes one by one.")
@click.option("--json", "as_json", is_flag=True, help="Print the document of docs/fleet.md.")
@click.option("--forget", is_flag=True, help="Take NODES out of the record: they are no more.")
@click.option("--repaired", metavar="NOTE", help="NODES were repaired, as NOTE says.")
@click.option("--check", "checks", metavar="CHECK", multiple=True, help="What was repaired, alone.")
def nodes(
    nodes: tuple[str, ...],
    everything: bool,
    as_json: bool,
    forget: bool,
    repaired: str | None,
    checks: tuple[str, ...],
) -> None:
    """Show what is known of NODES, or of all; of one with its history of 28 days.

    After --repaired, what checks saw before counts no more: what they remembered, and older lines
    of the kernel's and the BMC's logs. With --check that holds for these checks (`gpu` means all of
    gpu.*). What comes later counts, in `superv accept` too.
    """
    import json

    from supervisor.cli.status import all_listed
    from supervisor.config import load_site
    from supervisor.core.errors import UserError
    from supervisor.engine.clock import clock
    from supervisor.fleet.out_of_use import asked, by_node, known, of_runs
    from supervisor.fleet.record import STRIKES_OVER_S, Fleet

    now = clock()
    if checks and repaired is None:
        raise UserError("--check goes with --repaired")
    if repaired is not None:
        _repaired(nodes, repaired, checks, now)
        return
    if forget:
        _forget(nodes, now)
        return
    site = load_site(os.environ)
    with Fleet(site.fleet, write=False) as fleet:
        every = fleet.nodes(now)
        claims, notes = _claims(site, every, now)
        slurm = asked()
        out = known([*slurm.nodes, *of_runs(all_listed(site.state_dir))], {n.name for n in every})
        if nodes:
            every = _chosen(nodes, every)
            claims = [claim for claim in claims if claim["node"] in nodes]
            out = [word for word in out if word.node in nodes]
        if len(nodes) == 1:
            record = _history(fleet, every[0], now - STRIKES_OVER_S)
        else:
            record = {"schema": 1, "nodes": [_row(n) for n in every]}
        record |= {"claims": claims, "out_of_use": [word.document() for word in out]}
        record |= {"slurm_problem": slurm.problem}
        notes += [f"which nodes are down in Slurm is not known: {p}" for p in [slurm.problem] if p]
        notes += fleet.notes
    for note in notes:
        click.echo(f"superv: note: {note}", err=True)
    if as_json:
        click.echo(json.dumps(record, indent=2))
    else:
        one = len(nodes) == 1
        shown = _table(every, by_node(out), everything=everything or bool(nodes))
        terminal.show(_page(record) if one else shown)
        terminal.show([] if one else _claimed(claims))
        if held := "" if nodes else _brake(every):
            terminal.show([terminal.entry("", held, 0, hang=2)])


def _claims(site: Site, every: list[NodeHealth], now: float) -> tuple[list[Any], list[str]]:
    """What users keep out by themselves, but for what the record has from them, and notes."""
    from supervisor.fleet.claims import beside

    found, notes = beside(site.claims_dir, [n.excluded for n in every if n.excluded], now)
    rows = [
        {"node": c.node, "by": c.who, "run": c.run or None, "since": c.since, "until": c.until,
         "reason": c.reason}
        for c in found
    ]  # fmt: skip
    return rows, notes


def _claimed(claims: list[Any]) -> Iterator[Any]:
    if claims:
        yield "users keep out, by their own word (superv drains nobody for it):"
    for row in claims:
        yield terminal.entry(f"  {row['node']} ", _claim_text(row), 4)


def _claim_text(row: dict[str, Any]) -> str:
    by = f"{row['by']}, run {row['run']}" if row["run"] else row["by"]
    end = f", until {terminal.day_time(row['until'])}" if row["until"] else ""
    return f"{by} since {terminal.day_time(row['since'])}{end}: {row['reason']}"


def _brake(every: list[NodeHealth]) -> str:
    """That superv drains nobody more, as far as this record knows of its drains."""
    from supervisor.config import load_site
    from supervisor.fleet.brake import limit

    rule = load_site(os.environ).drain
    count, most = sum(n.drain is not None for n in every), limit(len(every), rule)
    if not rule.on or count < max(1, most):
        return ""
    return (
        f"the drain brake holds: superv has drained {count} of these {len(every)} nodes, {most} "
        "may be (drain: max_percent, max_nodes); it lifts when fewer are"
    )


def _forget(nodes: tuple[str, ...], now: float) -> None:
    from supervisor.config import load_site
    from supervisor.core.errors import UserError
    from supervisor.core.nodeset import compress
    from supervisor.fleet.record import Fleet

    if not nodes:
        raise UserError("--forget needs the names of nodes")
    with Fleet(load_site(os.environ).fleet) as fleet:
        for node in _chosen(nodes, fleet.nodes(now)):
            fleet.forget(node.name)
    are = "is" if len(nodes) == 1 else "are"
    click.echo(f"{compress(nodes)} {are} no longer in the fleet record")


def _repaired(nodes: tuple[str, ...], note: str, checks: tuple[str, ...], now: float) -> None:
    from healthchecks.frame.registry import select
    from healthchecks.frame.settings import of_site
    from supervisor.config import load_site
    from supervisor.core.errors import UserError
    from supervisor.core.nodeset import compress
    from supervisor.fleet import claims
    from supervisor.fleet.record import Fleet

    if not nodes:
        raise UserError("--repaired needs the names of nodes")
    text = one_reason(note, "--repaired")
    site = load_site(os.environ)
    of_site(site)  # its own checks are checks
    if checks:
        select(checks)  # raises for one that there is not
    with Fleet(site.fleet) as fleet:
        for node in _chosen(nodes, fleet.nodes(now)):
            fleet.repairs.tell(node.name, now, checks, text, claims.user())
    what = f" ({', '.join(checks)})" if checks else ""
    said = f"repaired {compress(nodes)}{what}: {text}; superv accept {compress(nodes)} looks at it"
    terminal.show([terminal.entry("", said, 0)])


def one_reason(text: str, option: str) -> str:
    """A person's words, on one line. Raises UserError."""
    from supervisor.core.errors import UserError

    text = " ".join(text.split())
    if not text or not text.isprintable():
        raise UserError(f"{option}: say why in a few words; others will read it at 3 a.m.")
    if len(text) > MAX_REASON:
        raise UserError(f"{option}: {len(text)} characters, {MAX_REASON} at most")
    return text


def _chosen(nodes: tuple[str, ...], every: list[NodeHealth]) -> list[NodeHealth]:
    """Those of the record that are named. Raises UserError for one that is not there."""
    from supervisor.config.schema import did_you_mean
    from supervisor.core.errors import UserError

    there = {node.name: node for node in every}
    if missing := [name for name in nodes if name not in there]:
        guess = did_you_mean(missing[0], there)
        raise UserError(f"{missing[0]}: not in the fleet record{guess}; superv nodes lists who is")
    return [there[name] for name in nodes]


def _row(node: NodeHealth) -> dict[str, Any]:
    out = node.excluded
    return {
        "node": node.name,
        "state": node.state,
        "since": node.since,
        "why": node.why,
        "looked_at": node.looked_at,
        "strikes": node.strikes,
        "excluded": {"since": out.since, "until": out.until, "reason": out.reason, "by": out.who}
        if out
        else None,
        "drained": {"since": node.drain.at, "reason": node.drain.reason} if node.drain else None,
    }


def _history(fleet: Fleet, node: NodeHealth, since: float) -> dict[str, Any]:
    standing = [s for s in fleet.current_findings(node.name) if s.finding.not_fine]
    return {
        "schema": 1,
        **_row(node),
        "accepted": fleet.accepted(node.name),
        "findings": [{**s.finding.document(), "since": s.since, "at": s.at} for s in standing],
        "changes": [
            {
                "at": c.at,
                "origin": c.origin,
                "finding": c.finding,
                "was": c.was.value if c.was else None,
                "status": c.status.value,
                "seen": c.seen,
            }
            for c in fleet.changes(since, node.name)
        ],
        "exclusions": [
            {"since": e.since, "until": e.until, "reason": e.reason, "by": e.who, "lifted": lifted}
            for e, lifted in fleet.past_exclusions(node.name, since)
        ],
        "repairs": [
            {"at": r.at, "checks": list(r.checks), "note": r.note, "by": r.who}
            for r in fleet.repairs.of(node.name, since)
        ],
    }


def _table(
    every: list[NodeHealth], out: dict[str, list[OutOfUse]], *, everything: bool
) -> Iterator[Any]:
    from supervisor.core.nodeset import compress

    if not every and not out:
        yield "no node was looked at yet; superv preflight NODES or superv sweep does that"
        return
    shown = [n for n in every if everything or n.state != "healthy" or n.strikes or n.name in out]
    strangers = [name for name in out if all(n.name != name for n in every)]
    if shown or strangers:
        width = min(MAX_NAME, max(4, *map(len, strangers), *(len(n.name) for n in shown)))
        columns = (
            terminal.TableColumn("NODE", most=MAX_NAME),
            terminal.TableColumn("STATE"),
            terminal.TableColumn("SINCE"),
            terminal.TableColumn("28 d", right=True),
            terminal.TableColumn("WHY"),
        )
        rows = [row for name in strangers for row in _words(out[name], width)]
        for node in shown:
            rows += _words(out.get(node.name, []), width)
            if node.state != "healthy" or node.strikes or node.name not in out:
                rows.append(_cells(node, width))
        yield terminal.table(columns, rows)
    healthy = [n.name for n in every if n.state == "healthy" and n not in shown]
    if healthy:
        yield terminal.entry("", f"healthy: {len(healthy)} nodes, {compress(healthy)}", 0, hang=9)


def _words(words: list[OutOfUse], name_width: int) -> Iterator[tuple[str | Text, ...]]:
    """That Slurm or a run has the node out of use: above what checks say of it."""
    for word in words:
        why = f"{word.by}: {word.why}" if word.why else word.by
        yield (
            word.node,
            terminal.styled((terminal.one_line(word.state, 12), terminal.style_of("out"))),
            terminal.day_time(word.since) if word.since else "",
            "",
            terminal.one_line(why, max(20, terminal.WIDTH - name_width - 35)),
        )


def _cells(node: NodeHealth, name_width: int) -> tuple[str | Text, ...]:
    until = ""
    if node.excluded is not None:
        end = terminal.day_time(node.excluded.until) if node.excluded.until else "superv include"
        until = f" (by {terminal.one_line(node.excluded.who, 20)}, until {end})"
    elif node.drain is not None:
        until = " (drained by superv)"
    room = max(20, terminal.WIDTH - name_width - 32 - len(until))
    return (
        node.name,
        terminal.styled((node.state, terminal.style_of(node.state))),
        terminal.day_time(node.since),
        str(node.strikes) if node.strikes else "",
        terminal.one_line(node.why, room) + until,
    )


def _page(record: dict[str, Any]) -> Iterator[Any]:
    when, state = terminal.day_time, record["state"]
    state = (state, terminal.style_of(state))
    out = ("out of use", terminal.style_of("out")) if record["out_of_use"] else ""
    checks = "; its checks: " if out else ""
    since = f" since {when(record['since'])}"
    yield terminal.styled(f"{record['node']}: ", out, checks, state, since)
    rows = [("out", _word_text(row)) for row in record["out_of_use"]]
    rows += [("why", record["why"])] if record["why"] else []
    looked_at = f"{when(record['looked_at'])}; failed {record['strikes']} x in 28 days"
    rows += [("looked at", looked_at)]
    rows += [("accepted", when(record["accepted"]) if record["accepted"] else "never")]
    if drain := record["drained"]:
        rows.append(("drained", f"{when(drain['since'])}: {drain['reason']}"))
    for row in record["exclusions"]:
        end = f"until {when(row['until'])}" if row["until"] else "until superv include"
        end = f"lifted {when(row['lifted'])}" if row["lifted"] else end
        by = f"{when(row['since'])} by {row['by']}, {end}"
        rows.append(("excluded", f"{by}: {row['reason']}"))
    for row in record["repairs"]:
        of = f" ({', '.join(row['checks'])})" if row["checks"] else ""
        rows.append(("repaired", f"{when(row['at'])} by {row['by']}{of}: {row['note']}"))
    rows += [("claimed", _claim_text(row)) for row in record["claims"]]
    for label, words in rows:
        yield terminal.entry(f"  {label}", words, 12)
    for row in record["findings"]:
        name = f"{row['check']}[{row['on']}]" if row.get("on") else row["check"]
        status = terminal.styled("  ", (row["status"], terminal.style_of(row["status"])))
        yield terminal.entry(status, f"{name} since {when(row['since'])}: {row['seen']}", 12)
        if row["fix"]:
            yield terminal.entry("          → ", row["fix"], 12)
    if record["changes"]:
        yield "  history"
    for row in record["changes"][:MAX_HISTORY]:
        change = f"{row['finding']} {row['was'] or 'new'} → {row['status']} ({row['origin']})"
        yield terminal.entry(f"    {when(row['at'])} ", f"{change}: {row['seen']}", 16)


def _word_text(row: dict[str, Any]) -> str:
    since = f" since {terminal.day_time(row['since'])}" if row["since"] else ""
    return f"{row['by']}: {row['state']}{since}{': ' + row['why'] if row['why'] else ''}"


def duration(text: str, option: str) -> float:
    """Seconds of `90m`, `12h`, `2d`, `1w`. Raises UserError."""
    from supervisor.core.errors import UserError

    read = re.fullmatch(r"([0-9]{1,5})([mhdw])", text)
    if read is None:
        raise UserError(f"{option} {text}: no duration; write 90m, 12h, 2d or 1w")
    seconds = int(read[1]) * _UNITS[read[2]]
    if not 60 <= seconds <= LONGEST_S:
        raise UserError(f"{option} {text}: expected 1m to 366d")
    return seconds
