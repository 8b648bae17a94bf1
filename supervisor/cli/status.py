"""`superv status`: a run from its engine, or from its journal where no engine is running."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from supervisor.core.status import state_word
from supervisor.core.types import ENDED, Phase
from supervisor.host import terminal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from supervisor.core.way_forward import NextStep
    from supervisor.host.terminal import Text
    from supervisor.run.folder import RunDir

MAX_INCIDENTS = 5  # of the last ones
ENGINE_WITHIN_S = 10.0
AT_ONCE = 32
LIST_WITHIN_S = 2.0  # where other runs wait to be shown


@click.command()
@click.argument("run", required=False)
@click.option("--all", "ended_too", is_flag=True, help="Runs that are over as well.")
@click.option("--json", "as_json", is_flag=True, help="Print the document of docs/status.md.")
def status(run: str | None, ended_too: bool, as_json: bool) -> None:
    """Show RUN, or a line for every run that lives or is held."""
    import json
    import os

    from supervisor.config import load_site
    from supervisor.core.errors import UserError
    from supervisor.run import folder

    home = load_site(os.environ).state_dir
    if run is not None:
        found = folder.find(home, run)
        one = listed(found, ENGINE_WITHIN_S)
        if one["phase"] is None:
            raise UserError(f"{one['problem']}; {one['fix']}")
        if as_json:
            click.echo(json.dumps(one, indent=2))
        else:
            terminal.show(_page(one, _older_engine(found, one)))
        return
    every = all_listed(home)
    shown = every if ended_too else [one for one in every if not is_over(one)]
    if as_json:
        click.echo(json.dumps(shown, indent=2))
    elif shown:
        columns = (terminal.TableColumn("RUN", most=40), terminal.TableColumn("STATE", folds=True))
        terminal.show([terminal.table(columns, map(_row, shown))])
    elif every:
        click.echo(f"no run lives or is held; {len(every)} are over: `superv runs` lists them")
    else:
        click.echo(none_there(home))


def is_over(run: dict[str, Any]) -> bool:
    """Nothing of it goes on, and nobody has to act: what can't be read may go on."""
    return run["phase"] in (Phase.DONE, Phase.STOPPED) or (
        run["phase"] in ENDED and run["replaced"]
    )


def none_there(home: Path) -> str:
    """What to say where there is no run at all."""
    return f"no runs in {home / 'runs'}; `superv launch JOB.YAML` starts one"


def all_listed(home: Path) -> list[dict[str, Any]]:
    """The documents of all runs, the newest first."""
    from concurrent.futures import ThreadPoolExecutor

    from supervisor.run import folder

    with ThreadPoolExecutor(AT_ONCE) as pool:  # those that do not answer are waited for together
        return list(pool.map(lambda found: listed(found, LIST_WITHIN_S), folder.every(home)))


def listed(run: RunDir, within_s: float) -> dict[str, Any]:
    """The document of a run, or what keeps it from being read: one broken run hides no other."""
    from supervisor.core.errors import UserError
    from supervisor.core.status import SCHEMA, next_step
    from supervisor.core.way_forward import journal_lost
    from supervisor.run.journal import LostJournalError

    fix = f"see what {run.path} holds, and {run.log}"
    told = {"run": run.path.name, "replaced": run.replaced}
    todo: NextStep | None = None
    try:
        return {**document(run, within_s), **told}
    except LostJournalError as error:
        problem, fix = error.problem, error.fix
        todo = None if run.replaced else journal_lost(run.path.name)
    except UserError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename or run.path}: {error.strerror or error}"
    problem = problem if str(run.path) in problem else f"{run.path}: {problem}"
    return {
        "schema": SCHEMA,
        "name": run.path.name,
        "phase": None,
        "engine": False,
        "problem": problem,
        "fix": fix,
        "next": next_step(todo),
        **told,
    }


def _row(run: dict[str, Any]) -> tuple[str | Text, ...]:
    if run["phase"] is None:
        problem = ("can't be read", "bold red"), f": {run['problem']}; {run['fix']}"
        return run["run"], terminal.styled(*problem)
    hint = "" if "engine" in _attention_tags(run) else "  (no engine)"
    no_engine = "" if run["engine"] or run["phase"] in ENDED else hint
    phase, rest = run["phase"], summary(run).removeprefix(run["phase"])
    return run["run"], terminal.styled((phase, terminal.style_of(phase)), rest, no_engine)


def summary(run: dict[str, Any]) -> str:
    """One line: where the run stands, and what of it needs attention."""
    tags = ", ".join(dict.fromkeys(_attention_tags(run)))
    return _standing(run) + (f", needs attention: {tags}" if tags else "")


def _standing(run: dict[str, Any]) -> str:
    parts = [run["phase"]]
    if run["attempt"] is not None:
        parts.append(f"attempt {run['attempt']}")
    if run["step"] is not None:
        parts.append(f"step {run['step']}")
    if run["loss"] is not None:
        parts.append(f"loss {run['loss']:g}")
    newest = run["last_checkpoint"]
    if newest is not None:
        parts.append(f"checkpoint {newest['step']}")
    spares = run["spares"]
    parts.append(f"{len(spares)} spare{'' if len(spares) == 1 else 's'}")
    return ", ".join(parts)


def _attention_tags(run: dict[str, Any]) -> list[str]:
    return [one["what"] for one in run.get("attention", [])]  # an older engine has none


def document(run: RunDir, within_s: float = ENGINE_WITHIN_S) -> dict[str, Any]:
    """The status document, with `engine`: whether it comes from a living engine.

    One that does not answer within so many seconds is named, and the journal read instead.
    """
    from supervisor.core.errors import TransientError
    from supervisor.core.status import next_step
    from supervisor.core.status import status as describe
    from supervisor.core.way_forward import engine_gone, engine_mute
    from supervisor.engine import control
    from supervisor.engine.clock import clock

    about: list[dict[str, Any]] = []
    todo: NextStep | None = None
    try:
        for answer in control.ask(run.socket, {"do": "status"}, within_s=within_s):
            return {**answer, "engine": True}
    except control.NoEngineError:
        pass
    except TransientError as error:
        about = [_mute_engine(run, str(error))]
        todo = engine_mute(run.path.name, _pid(run))
    state = run.load()
    if not about and not state.ended:
        about = _guardians_word(run)
        todo = engine_gone(run.path.name)
    told = describe(state, clock(), job_file=run.origin())
    todo_told = {"next": next_step(todo)} if todo is not None else {}
    told = {**told, **todo_told, "attention": [*about, *told["attention"]]}
    return {**told, "engine": False}


def _pid(run: RunDir) -> int | None:
    from supervisor.engine import control

    try:
        return control.engine_pid(run.socket)
    except control.NoEngineError:
        return None


def _guardians_word(run: RunDir) -> list[dict[str, Any]]:
    """The line of `attention` about an engine that its guardian is about to start again."""
    with contextlib.suppress(OSError), run.log.open("rb") as log:
        log.seek(max(0, log.seek(0, 2) - 2000))
        last = log.read().decode(errors="replace").rstrip("\n").rpartition("\n")[2]
        if said := last.partition(" guardian: ")[2]:
            fix = f"see {run.log}; `superv attach {run.path.name}` starts it at once"
            return [{"what": "engine", "since": None, "text": said, "fix": fix}]
    return []


def _mute_engine(run: RunDir, why: str) -> dict[str, Any]:
    """The line of `attention` about an engine that is there and does not answer."""
    from supervisor.engine.spawn import mute_fix

    text = f"{why}; this is from the journal"
    return {"what": "engine", "since": None, "text": text, "fix": mute_fix(run)}


def _older_engine(run: RunDir, shown: dict[str, Any]) -> str:
    """What to do about an engine that was started before superv was upgraded; empty otherwise.

    It starts programs of its own version, which are gone where the upgrade replaced them: then it
    verifies no checkpoint any more, and a restart waits for that without end.
    """
    from supervisor.engine import control

    if not shown["engine"] or "violations" in shown:  # engines of superv 0.1 do not tell them
        return ""
    try:
        pid = control.engine_pid(run.socket)
    except control.NoEngineError:
        return ""
    name = shown["name"]
    return (
        f"of superv 0.1, which can't go on for long after an upgrade: `kill {pid}`, then `superv "
        f"attach {name}` starts this version's; the ranks notice nothing"
    )


def _page(run: dict[str, Any], engine: str = "") -> Iterator[terminal.Entry | Text]:
    """What people read of a run; `engine`: what is to be said about its engine."""
    phase, rest = run["phase"], _standing(run).removeprefix(run["phase"])
    yield terminal.styled(f"{run['name']}: ", (phase, terminal.style_of(phase)), rest)
    yield from _attention(run)
    if engine:
        yield terminal.entry("  engine", engine, 11)
    for label, words in _facts(run):
        yield terminal.entry(f"  {label}", words, 11)
    for incident in run["incidents"][-MAX_INCIDENTS:]:
        head, *more = _incident(incident)
        yield terminal.entry("  incident", head, 11, hang=2)
        for words in more:
            yield terminal.entry("", words, 13)


def _attention(run: dict[str, Any]) -> Iterator[terminal.Entry]:
    """What a person should look at, and what to do: above all that is only told."""
    for one in run.get("attention", []):
        since = f" (since {terminal.day_time(one['since'], seconds=True)})" if one["since"] else ""
        head = terminal.styled("  ", ("needs attention", "bold yellow"), ": ")
        yield terminal.entry(head, f"{one['text']}{since}", 11)
        yield terminal.entry(f"{'':11}→ ", one["fix"], 13)


def _facts(run: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is so now: labels, and what they are about."""
    from supervisor.cli.run_words import pace, rank_phases, waited_for
    from supervisor.core.nodeset import compress

    if run["reason"]:
        yield "why", run["reason"]
    if todo := run.get("next"):  # an engine of an older superv tells none
        yield "next", todo["command"]
        page = f" ({todo['runbook']})" if todo["runbook"] else ""
        yield "", f"{todo['why']}{page}"
    if not run["engine"] and run["phase"] not in ENDED and "engine" not in _attention_tags(run):
        yield "engine", f"none is running here; `superv attach {run['name']}` starts it again"
    for label, words in (
        ("waits", waited_for(run, run["now"])),
        ("pace", pace(run)),
        ("ranks", rank_phases(run)),
    ):
        if words:
            yield label, words
    newest = run["last_checkpoint"]
    if newest:
        yield "resume", f"from step {newest['step']}: {newest['path']}"
    else:
        yield "resume", "no verified checkpoint yet: a restart begins at step 0"
    for job in run["allocations"]:
        reason = f": {job['reason']}" if job["reason"] not in ("", "None") else ""
        reason += f", {job['means']}" if job.get("means") else ""  # not by an older engine
        yield "job", f"{job['job_id']} {job['raw']} ({len(job['nodes'])} nodes){reason}"
    if slots := [slot["node"] for slot in run["slots"] if slot["node"]]:
        yield "slots", compress(slots)
    if run.get("drained"):  # an engine of an older superv does not tell
        yield "drained", f"{compress(run['drained'])}, in Slurm: no ranks begin there"
    if run["spares"]:
        yield "spares", compress(run["spares"])
    excluded = [{**node, "state": "excluded"} for node in run["excluded"]]
    alike: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for node in [*run["unusable"], *excluded]:
        alike.setdefault((state_word(node["state"]), node["reason"]), []).append(node)
    for (state, reason), nodes in alike.items():
        since = terminal.day_time(min(node["since"] for node in nodes), seconds=True)
        yield state, f"{compress(node['node'] for node in nodes)} since {since}: {reason}"
    for one in run.get("violations", []):  # an engine of an older superv has none
        done = "refused" if one["refused"] or one["undone"] else "noticed"
        at = terminal.day_time(one["at"], seconds=True)
        what = f"{one['what']} (invariant {one['invariant']}, {one['times']} times"
        yield "superv", f"{done} {at}: {what}; a fault of superv, please report it)"


def _incident(incident: dict[str, Any]) -> Iterator[str]:
    """Which, what was seen, and how it ended."""
    at = terminal.day_time(incident["confirmed"], seconds=True)
    culprits = ", ".join(incident["culprits"]) or "nobody named"
    yield f"{at} {incident['cause']}, {culprits}: {incident['remedy'] or 'under way'}"
    why = incident["why"] or ""
    if why:
        yield why
    more = [e["text"] for e in incident["evidence"] if e["text"] not in why]
    for text in more[: 2 if why else 3]:
        yield terminal.one_line(text, terminal.WIDTH - 13)
    if incident["first_step"] is not None:
        took = incident["first_step"] - (incident["fault"] or incident["suspected"])
        since = "the fault" if incident["fault"] else "the suspicion"
        lost = "" if incident["steps_lost"] is None else f", {incident['steps_lost']} steps lost"
        yield f"new steps {took:.1f} s after {since}{lost}"
    yield incident["runbook"]
