"""`superv lab …`: a real Slurm cluster on this machine, and faults for it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

import click

from supervisor.cli import Commands
from supervisor.cli.numbers import Number
from supervisor.host import terminal

if TYPE_CHECKING:
    from lab.cluster import Lab
    from lab.faults import InjectedFault
    from lab.status import LabStatus


F = TypeVar("F", bound=Callable[..., object])


USUAL = "default"
# What a program has to know of the terminal that it is shown on.
OF_TERMINAL = ("TERM", "COLORTERM", "COLUMNS", "LINES", "NO_COLOR")


def meant(there: Sequence[str]) -> str:
    """The lab that is meant where none is named, of those that are there. Raises UserError."""
    from supervisor.core.errors import UserError

    if USUAL in there or not there:
        return USUAL
    if len(there) > 1:
        raise UserError(f"which lab? give --name; there: {', '.join(there)}")
    return there[0]


def _lab(name: str | None) -> Lab:
    from lab.cluster import Lab, names

    return Lab(meant(names()) if name is None else name)


def _named(command: F) -> F:
    return click.option(
        "--name", help=f"Which lab; without it {USUAL!r}, or the only one that is there."
    )(command)


def _exactly_named(command: F) -> F:
    """For what makes or removes a lab: no other is taken for it."""
    return click.option(
        "--name", default=USUAL, show_default=True, help="Which lab; labs live side by side."
    )(command)


def _terminal() -> dict[str, str]:
    return {name: os.environ[name] for name in OF_TERMINAL if name in os.environ}


@click.group(cls=Commands)
def lab() -> None:
    """A real Slurm cluster on this machine, in namespaces, with faults to order. Needs root."""


@lab.command()
@_exactly_named
@click.option(
    "--nodes",
    type=Number(1, 256, whole=True),
    default=3,
    show_default=True,
    help="Compute nodes n1, n2, …",
)
@click.option(
    "--gpus",
    type=Number(1, 64, whole=True),
    default=8,
    show_default=True,
    help="GPUs that each node claims.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="A line of slurm.conf, e.g. SlurmdTimeout=300.",
)
@click.option("--strict", is_flag=True, help="As suspicious sites have it; see docs/lab-faults.md.")
@click.option(
    "--slurm",
    metavar="24.11|26.05",
    default="",
    help="A release of Slurm from Debian's packages; the machine's own without it.",
)
def up(
    name: str, nodes: int, gpus: int, settings: tuple[str, ...], strict: bool, slurm: str
) -> None:
    """Start a lab and wait until its nodes are idle."""
    from supervisor.core.errors import UserError

    pairs = dict(item.partition("=")[::2] for item in settings if "=" in item)
    if len(pairs) != len(settings):
        raise UserError(f"--set {' '.join(settings)}: write KEY=VALUE, each key once")
    there = _lab(name)
    there.up(nodes, gpus=gpus, settings=pairs, strict=strict, slurm=slurm)
    click.echo(f"lab {name}: {nodes} nodes idle, {there.spec().running}")
    click.echo(f"superv lab shell --name {name}")


@lab.command()
@_exactly_named
def down(name: str) -> None:
    """End a lab and remove everything of it, also after a crash."""
    from lab.cluster import names

    there = _lab(name).down()
    others = "" if there or not names() else f"; there: {', '.join(names())} (give --name)"
    click.echo(f"lab {name}: {'removed' if there else f'there is none{others}'}")


@lab.command()
@_named
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
def status(name: str | None, as_json: bool) -> None:
    """Nodes, controller and the last faults."""
    seen = _lab(name).status()
    if as_json:
        click.echo(json.dumps(asdict(seen), indent=1))
    else:
        terminal.show(_page(seen))


def _page(seen: LabStatus) -> Iterator[Any]:
    from datetime import UTC, datetime

    yield f"lab {seen.name}: controller {seen.controller}, {seen.slurm}"
    yield f"shared files: {seen.shared}"
    yield ""
    heads = map(terminal.TableColumn, ("NODE", "ADDRESS", "POWER", "CABLE", "SLURM"))
    rows = ((n.name, n.address, n.power, n.cable, n.slurm or "-") for n in seen.nodes)
    yield terminal.table(tuple(heads), rows)
    if seen.faults:
        yield ""
        yield "last faults"
    for fault in seen.faults:
        at = datetime.fromtimestamp(fault.at, UTC).isoformat(" ", "milliseconds")
        text = f"{fault.fault:18} {fault.node:8} {fault.detail}"
        yield terminal.entry(f"{at}  ", text, 31, hang=28)


def _exec(argv: list[str]) -> None:
    """Become the command: terminal, signals and exit code are its own."""
    os.execvp(argv[0], argv)  # noqa: S606 - no shell, and this process ends here


@lab.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_named
@click.option("--root", is_flag=True, help="As root instead of the lab's user.")
@click.argument("node")
@click.argument("command", nargs=-1, required=True)
def run(name: str | None, root: bool, node: str, command: tuple[str, ...]) -> None:
    """Run COMMAND on NODE (login, ctl, n1, …); ends with the command's exit code."""
    words = command[1:] if command[0] == "--" else command  # options of the command may follow
    _exec(_lab(name).enter(node, words, user="root" if root else "superv", env=_terminal()))


@lab.command()
@_named
@click.option("--root", is_flag=True, help="As root instead of the lab's user.")
@click.argument("node", default="login")
def shell(name: str | None, root: bool, node: str) -> None:
    """Open a shell on NODE."""
    there = _lab(name)
    argv = there.enter(
        node,
        ["bash", "--norc", "-i"],
        user="root" if root else "superv",
        env={"PS1": r"[\u@\h \W]\$ ", **_terminal()},
    )
    _exec(argv)


def _say(fault: InjectedFault) -> None:
    click.echo(json.dumps(asdict(fault)))


@lab.command()
@_named
@click.argument("node")
def poweroff(name: str | None, node: str) -> None:
    """Power NODE off: silence on the network, then everything on it is gone."""
    _say(_lab(name).poweroff(node))


@lab.command()
@_named
@click.argument("node")
def poweron(name: str | None, node: str) -> None:
    """Power NODE on again."""
    _say(_lab(name).poweron(node))


@lab.command()
@_named
@click.argument("node")
def cut(name: str | None, node: str) -> None:
    """Pull NODE's network cable; its processes go on."""
    _say(_lab(name).cut(node))


@lab.command()
@_named
@click.argument("node")
def mend(name: str | None, node: str) -> None:
    """Put NODE's network cable back."""
    _say(_lab(name).mend(node))


@lab.command("pause-controller")
@_named
def pause_controller(name: str | None) -> None:
    """Stop slurmctld: it accepts connections and answers nothing."""
    _say(_lab(name).pause_controller())


@lab.command("resume-controller")
@_named
def resume_controller(name: str | None) -> None:
    """Let slurmctld go on."""
    _say(_lab(name).resume_controller())


@lab.command()
@_named
@click.argument("node")
@click.argument("rate")
def slow(name: str | None, node: str, rate: str) -> None:
    """Let no more than RATE (10mbit, 500kbit) through NODE's cable, each way."""
    _say(_lab(name).slow(node, rate))


@lab.command()
@_named
@click.argument("node")
@click.argument("percent", type=Number(0, 100, "percent"))
def lossy(name: str | None, node: str, percent: float) -> None:
    """Lose PERCENT of the frames on NODE's cable at random, each way."""
    _say(_lab(name).lossy(node, percent))


@lab.command()
@_named
@click.argument("node")
@click.argument("ms", type=Number(0, 10_000, "milliseconds"))
def delay(name: str | None, node: str, ms: float) -> None:
    """Let each frame on NODE's cable arrive MS milliseconds later, each way."""
    _say(_lab(name).delay(node, ms))


@lab.command()
@_named
@click.argument("node")
def fast(name: str | None, node: str) -> None:
    """Undo slow, lossy and delay."""
    _say(_lab(name).fast(node))


@lab.command()
@_named
@click.argument("node")
@click.argument("percent", type=Number(0, 100, "percent"))
def steal(name: str | None, node: str, percent: float) -> None:
    """Take PERCENT of the machine's CPU time from all that runs on NODE."""
    _say(_lab(name).steal(node, percent))


@lab.command()
@_named
@click.argument("node")
@click.argument("mib", type=Number(1, 2**24, "MiB", whole=True))
def memory(name: str | None, node: str, mib: int) -> None:
    """Let NODE take MIB MiB more and no more; beyond that the OOM killer comes."""
    _say(_lab(name).memory(node, mib))


@lab.command()
@_named
@click.argument("node")
def relieve(name: str | None, node: str) -> None:
    """Undo steal and memory."""
    _say(_lab(name).relieve(node))


@lab.command("mount-fault")
@_named
@click.option(
    "--delay", type=Number(0, 3600, "seconds"), default=3, show_default=True, help="What slow adds."
)
@click.argument("node")
@click.argument("path")
@click.argument("mode", metavar="ok|hung|stale|slow|readonly|off")
def mount_fault(name: str | None, delay: float, node: str, path: str, mode: str) -> None:
    """Mount NODE's folder PATH over itself, and break or repair that mount."""
    _say(_lab(name).mount_fault(node, path, mode, delay_s=delay))


@lab.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_named
@click.option(
    "--priority",
    type=Number(0, 7, whole=True),
    default=4,
    show_default=True,
    help="0 emergency … 4 warning … 7 debug.",
)
@click.argument("node")
@click.argument("lines", nargs=-1, required=True, metavar="LINE...")
def kmsg(name: str | None, priority: int, node: str, lines: tuple[str, ...]) -> None:
    """Append each LINE to NODE's kernel log."""
    _say(_lab(name).kmsg(node, *lines, priority=priority))
