"""`superv demo`: a real Slurm, a real TorchTitan MoE run, a node that loses power, a timeline."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from supervisor.core.errors import UserError

if TYPE_CHECKING:
    from lab.cluster import Lab

REPO = Path(__file__).resolve().parents[2]
EXAMPLE = REPO / "examples" / "torchtitan_lab"
RUN = "moe-demo"
VICTIM_SLOT = 1
STEPS_BEFORE = 13  # the fault comes this many steps in: a few after a checkpoint
STEPS_AFTER = 3

JOB = """\
name: moe-demo
nodes: 2
spares: 1
trainer:
  script: {script}
  args: [--job.config_file, {config}, --training.steps, "2000"]
  python: {python}
  hook: torchtitan
  preload: [titan_cpu]
  env: {{GLOO_SOCKET_IFNAME: eth0}}
checkpoints: {{dir: checkpoint}}
policy: {{stop_grace_s: 2}}
"""


@click.command()
@click.option(
    "--trainer-python",
    type=click.Path(path_type=Path),
    default=REPO / ".venv-titan" / "bin" / "python",
    help="A Python with TorchTitan; `make demo` makes one.",
)
@click.option("--keep", is_flag=True, help="Leave the lab and the run as they are at the end.")
def demo(trainer_python: Path, keep: bool) -> None:
    """Lose a node in mid-training and watch superv bring the run back on the spare.

    Starts a Slurm cluster of 2 nodes and a spare in network namespaces of this machine (needs
    root), launches TorchTitan's deepseek_v3 MoE trainer on CPUs, and powers a node off.
    """
    from lab.cluster import Lab, exposed_by_default

    if not EXAMPLE.is_dir():
        raise UserError(f"{EXAMPLE}: not there; the demo runs from a checkout of superv")
    if not trainer_python.exists():
        raise UserError(f"{trainer_python}: not there; `make demo` installs TorchTitan into it")
    lab = Lab("demo")
    venv = trainer_python.parent.parent
    say("starting a Slurm cluster: a controller, a login node, 2 nodes and a spare")
    lab.down()
    lab.up(3, exposed=[*exposed_by_default(), venv.absolute()])
    try:
        status = play(lab, trainer_python.absolute())
        click.echo()
        for line in timeline(status, read_faults(lab)):
            click.echo(line)
        if not keep:
            superv(lab, "stop", RUN, "--now")
    finally:
        if keep:
            say(
                "kept: `superv lab shell --name demo` enters it, "
                "`superv lab down --name demo` ends it"
            )
        else:
            say("removing the cluster")
            lab.down()


def say(text: str) -> None:
    click.secho(f"demo: {text}", bold=True)


def superv(lab: Lab, *argv: str) -> str:
    """Run superv on the lab's login node, as its ordinary user. Raises UserError."""
    done = lab.run("login", [sys.executable, "-m", "supervisor.cli", *argv], deadline_s=60)
    if done.rc != 0:
        raise UserError(f"superv {' '.join(argv)} failed: {done.why()}")
    return done.out


def play(lab: Lab, python: Path) -> dict[str, Any]:
    """Launch, wait for steps, power a node off, wait for new steps; the run's status then."""
    home = lab.shared / "demo"
    job = home / "job.yaml"
    say("making a tokenizer and training data")
    as_user(lab, "mkdir", "-p", str(home))
    as_user(lab, str(python), str(EXAMPLE / "assets.py"), str(home))
    text = JOB.format(
        script=EXAMPLE / "titan_cpu.py", config=EXAMPLE / "moe_lab.toml", python=python
    )
    as_user(lab, "tee", str(job), stdin=text)
    say(f"superv launch {job}")
    superv(lab, "launch", "--detach", str(job))
    with watching(lab):
        before = until(lab, "step 13", lambda s: (s["step"] or 0) >= STEPS_BEFORE, 180)
        victim = before["slots"][VICTIM_SLOT]["node"]
        say(f"powering off {victim}, which trains in slot {VICTIM_SLOT}")
        lab.poweroff(victim)
        return until(lab, "new steps on the spare", recovered, 180)


def recovered(status: dict[str, Any]) -> bool:
    last = status["incidents"][-1] if status["incidents"] else None
    return bool(
        last and last["first_step"] and status["step"] >= last["resumed_from"] + STEPS_AFTER
    )


def as_user(lab: Lab, *argv: str, stdin: str | None = None) -> None:
    done = lab.run(
        "login", list(argv), stdin=None if stdin is None else stdin.encode(), deadline_s=120
    )
    if done.rc != 0:
        raise UserError(f"{argv[0]} failed on the login node: {done.why()}")


@contextlib.contextmanager
def watching(lab: Lab) -> Iterator[None]:
    """Show what `superv attach` prints meanwhile."""
    import signal

    from supervisor import proc

    argv = lab.enter("login", [sys.executable, "-m", "supervisor.cli", "attach", RUN])
    sys.stdout.flush()
    child = proc.spawn(argv, env=os.environ, cwd="/", stdout=1)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(timeout=10)


def until(
    lab: Lab, what: str, reached: Callable[[dict[str, Any]], bool], seconds: float
) -> dict[str, Any]:
    """Ask for the status until it is as wanted. Raises UserError."""
    deadline = time.monotonic() + seconds
    while True:
        status: dict[str, Any] = json.loads(superv(lab, "status", RUN, "--json"))
        if reached(status):
            return status
        if status["phase"] in ("held", "stopped", "done"):
            raise UserError(f"the run ended ({status['phase']}: {status['reason']})")
        if time.monotonic() > deadline:
            raise UserError(f"{what} did not come within {seconds:.0f} s: {status['reason']}")
        time.sleep(0.5)


def read_faults(lab: Lab) -> list[tuple[float, str, str]]:
    from lab import faults

    return [(f.at, f.fault, f.node) for f in faults.read(lab.layout)]


def timeline(status: dict[str, Any], faults: list[tuple[float, str, str]]) -> list[str]:
    """The last incident as a table; every time is the lab's log's or the journal's."""
    incident = status["incidents"][-1]
    off = [(at, node) for at, fault, node in faults if fault == "poweroff"]
    zero, node = off[-1]
    who = ", ".join(incident["culprits"]) or "nobody"
    slot = next(s for s in status["slots"] if s["slot"] == VICTIM_SLOT)
    witness = next(
        (e["text"] for e in incident["evidence"] if e["source"] not in ("silence", "agent")), ""
    )
    rows = [
        (zero, "fault", f"{node} powered off", "lab's log"),
        (incident["suspected"], "suspected", "silent: no beat of its agent", "journal"),
        (incident["confirmed"], "confirmed", witness, "journal"),
        (incident["stopped"], "stopped", "the ranks that were left are gone", "journal"),
        (
            incident["stopped"],
            "verdict",
            f"{incident['cause']}: {who} ({incident['confidence']})",
            "journal",
        ),
        (
            incident["relaunched"],
            "relaunched",
            f"spare {slot['node']} in slot {VICTIM_SLOT}, from verified step "
            f"{incident['resumed_from']}",
            "journal",
        ),
        (incident["first_step"], "first step", "training makes new steps", "journal"),
    ]
    lines = [f"{'time':<12}  {'after':>7}  {'':<10}  {'what':<52}  from"]
    for at, name, what, source in rows:
        clock = time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1000):03d}"
        lines.append(f"{clock}  {at - zero:6.2f}s  {name:<10}  {what[:52]:<52}  {source}")
    lines.append("")
    lines.append(
        f"{incident['first_step'] - zero:.1f} s from the fault to the first new step; "
        f"{incident['steps_lost']} steps lost (step {incident['step']} was the last before it)"
    )
    return lines
