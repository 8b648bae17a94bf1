"""`superv nodes`, `exclude`, `include`: the fleet record, and a person's word in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from supervisor.fleet import Fleet, NodeHealth

WIDTH = 100
COLOURS = {"failed": "red", "unknown": "magenta", "degraded": "yellow", "excluded": "cyan"}
MOST_NAME = 24  # columns of the table
MOST_REASON = 300
SLURM_S = 10.0  # for its list of nodes
LONGEST_S = 366 * 86_400.0
_UNITS = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


@click.command()
@click.argument("node", required=False)
@click.option("--all", "everything", is_flag=True, help="Also list the healthy nodes one by one.")
@click.option("--json", "as_json", is_flag=True, help="Print the document of docs/fleet.md.")
@click.option("--forget", is_flag=True, help="Take NODE out of the record: it is no more.")
def nodes(node: str | None, everything: bool, as_json: bool, forget: bool) -> None:
    """Show what is known of the nodes, or of NODE with its history of 28 days."""
    import json
    import os

    from supervisor import app
    from supervisor.fleet import STRIKES_OVER_S

    now = app.clock()
    if forget:
        _forget(node, now)
        return
    with _open(write=False) as fleet:
        every = fleet.nodes(now)
        if node is not None:
            (one,) = [n for n in every if n.name == node] or [_missing(node, every)]
            told = _history(fleet, one, now - STRIKES_OVER_S)
            lines = [json.dumps(told, indent=2)] if as_json else _page(told)
        elif as_json:
            lines = [json.dumps({"schema": 1, "nodes": [_row(n) for n in every]}, indent=2)]
        else:
            lines = _table(every, everything=everything)
    plain = bool(os.environ.get("NO_COLOR"))  # https://no-color.org
    click.echo("\n".join(lines), color=False if plain else None)


def _forget(node: str | None, now: float) -> None:
    from supervisor.core.errors import UserError

    if node is None:
        raise UserError("--forget needs the name of a node")
    with _open(write=True) as fleet:
        if node not in {n.name for n in fleet.nodes(now)}:
            _missing(node, fleet.nodes(now))
        fleet.forget(node)
    click.echo(f"{node} is no longer in the fleet record")


def _open(*, write: bool) -> Fleet:
    import os

    from supervisor.config import load_site
    from supervisor.fleet import Fleet

    return Fleet(load_site(os.environ).fleet, write=write)


def _missing(node: str, every: list[NodeHealth]) -> Any:
    from supervisor.config.schema import did_you_mean
    from supervisor.core.errors import UserError

    guess = did_you_mean(node, [n.name for n in every])
    raise UserError(f"{node}: not in the fleet record{guess}; superv nodes lists who is")


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
    standing = [s for s in fleet.standing(node.name) if s.finding.status not in ("OK", "SKIP")]
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
    }


def _when(at: float | None) -> str:
    import time

    return time.strftime("%m-%d %H:%M", time.localtime(at)) if at else "-"


def _table(every: list[NodeHealth], *, everything: bool) -> list[str]:
    from supervisor.core.nodeset import compress

    if not every:
        return ["no node was looked at yet; superv preflight NODES or superv sweep does that"]
    shown = [n for n in every if everything or n.state != "healthy" or n.strikes]
    width = min(MOST_NAME, max([4, *(len(n.name) for n in shown)]))
    lines = [f"{'NODE':<{width}}  {'STATE':<9} {'SINCE':<11} {'28 d':>4}  WHY"] if shown else []
    for node in shown:
        until = ""
        if node.excluded is not None:
            end = _when(node.excluded.until) if node.excluded.until else "included by hand"
            until = f" (by {node.excluded.who}, until {end})"
        elif node.drain is not None:
            until = " (drained by superv)"
        state = click.style(f"{node.state:<9}", fg=COLOURS.get(node.state))
        name, strikes = _cut(node.name, width), str(node.strikes) if node.strikes else ""
        head = f"{name:<{width}}  {state} {_when(node.since):<11} {strikes:>4}  "
        room = WIDTH - width - 30
        why = _cut(node.why, max(20, room - len(until)))
        lines.append(head + _cut(why + until, room))
    healthy = [n.name for n in every if n.state == "healthy" and n not in shown]
    if healthy:
        lines.append(_cut(f"healthy: {len(healthy)} nodes, {compress(healthy)}", WIDTH))
    return lines


def _cut(text: str, room: int) -> str:
    from supervisor.cli.watch import printable

    text = printable(text)
    return text if len(text) <= room else text[: room - 1] + "…"


def _page(told: dict[str, Any]) -> list[str]:
    lines = [f"{told['node']}: {told['state']} since {_when(told['since'])}"]
    if told["why"]:
        lines.append(f"  why       {told['why']}")
    lines.append(f"  looked at {_when(told['looked_at'])}; failed {told['strikes']} x in 28 days")
    lines.append(f"  accepted  {_when(told['accepted']) if told['accepted'] else 'never'}")
    if told["drained"]:
        lines.append(f"  drained   {_when(told['drained']['since'])}: {told['drained']['reason']}")
    for row in told["findings"]:
        name = f"{row['check']}[{row['on']}]" if row.get("on") else row["check"]
        lines.append(f"  {row['status']:<8} {name} since {_when(row['since'])}: {row['seen']}")
        lines += [f"           → {row['fix']}"] if row["fix"] else []
    for row in told["exclusions"]:
        end = f"until {_when(row['until'])}" if row["until"] else "until it is included"
        end = f"lifted {_when(row['lifted'])}" if row["lifted"] else end
        lines.append(f"  excluded {_when(row['since'])} by {row['by']}, {end}: {row['reason']}")
    lines += ["  history"] if told["changes"] else []
    for row in told["changes"][:40]:
        was = row["was"] or "new"
        lines.append(
            f"    {_when(row['at'])} {row['finding']} {was} → {row['status']} "
            f"({row['origin']}): {row['seen']}"
        )
    return [_cut(line, WIDTH) for line in lines]


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


def _worded(reason: str) -> str:
    """A reason on one line. Raises UserError."""
    from supervisor.core.errors import UserError

    text = " ".join(reason.split())
    if not text or not text.isprintable():
        raise UserError("--reason: say why in a few words; others will read it at 3 a.m.")
    if len(text) > MOST_REASON:
        raise UserError(f"--reason: {len(text)} characters, {MOST_REASON} at most")
    return text


def _known(names: tuple[str, ...]) -> str:
    """Why it is not known that Slurm has these nodes; raises UserError where it has not."""
    import asyncio

    from launchers.slurm import Slurm
    from supervisor.config.schema import did_you_mean
    from supervisor.core.errors import TransientError, UserError

    try:
        there = asyncio.run(Slurm(deadline_s=SLURM_S).nodes())
    except (UserError, TransientError) as error:
        return str(error)
    strangers = [name for name in names if name not in there]
    if strangers:
        more = f" (nor {len(strangers) - 1} more of these)" if len(strangers) > 1 else ""
        guess = did_you_mean(strangers[0], there)
        raise UserError(
            f"{strangers[0]}: Slurm knows no such node{more}{guess}; sinfo -N lists them"
        )
    return ""


def named(text: str) -> tuple[str, ...]:
    from supervisor.core.errors import UserError
    from supervisor.core.nodeset import expand

    try:
        names = expand(text)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not names:
        raise UserError("no node is named; write names as n1,n[4-7]")
    return names


def _who() -> str:
    import os
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


@click.command()
@click.argument("node_list", metavar="NODES")
@click.option("--reason", required=True, help="Why; others will read it at 3 a.m.")
@click.option("--for", "period", help="How long, as 12h or 2d; until it is included without.")
def exclude(node_list: str, reason: str, period: str | None) -> None:
    """Keep NODES out of new runs, and out of the slots that runs fill anew."""
    from supervisor import app
    from supervisor.core.nodeset import compress

    names, why = named(node_list), _worded(reason)
    now = app.clock()
    until = now + duration(period, "--for") if period is not None else None
    if unsure := _known(names):
        click.echo(f"superv: note: whether there are such nodes is not known: {unsure}", err=True)
    with _open(write=True) as fleet:
        for name in names:
            fleet.exclude(name, why, _who(), now, until)
    end = f"until {_when(until)}" if until else "until superv include"
    click.echo(f"excluded {compress(names)} {end}: {why}")


@click.command()
@click.argument("node_list", metavar="NODES")
@click.option("--force", is_flag=True, help="Also nodes that have not passed since.")
def include(node_list: str, force: bool) -> None:
    """Let runs use NODES again, once each has passed a preflight since it was excluded."""
    from supervisor import app
    from supervisor.core.errors import UserError
    from supervisor.core.nodeset import compress

    names = named(node_list)
    now = app.clock()
    with _open(write=True) as fleet:
        out = fleet.exclusions(now)
        strangers = [name for name in names if name not in out]
        if strangers:
            raise UserError(f"{compress(strangers)}: not excluded; superv nodes shows who is")
        late = [name for name in names if not fleet.passes(name, out[name].since)]
        if late and not force:
            raise UserError(
                f"{compress(late)}: not passed since the exclusion; run superv preflight "
                f"{compress(late)} first, or include with --force"
            )
        for name in names:
            fleet.include(name, _who(), now)
    click.echo(f"included {compress(names)}")
