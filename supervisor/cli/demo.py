"""`superv demo`: a real TorchTitan MoE run, a node that is lost, recovery, a timeline."""

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
from supervisor.core.types import ENDED
from supervisor.host import terminal

if TYPE_CHECKING:
    from supervisor.cli.demo_backends import DemoBackend

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
launcher: {launcher}
trainer:
  script: {script}
  args: [--module, moe_lab, --config, lab, --training.steps, "2000"]
  python: {python}
  hook: torchtitan
  preload: [titan_cpu]
  env: # what torch and its libraries keep goes away with the demo
    GLOO_SOCKET_IFNAME: {interface}
    TORCHINDUCTOR_CACHE_DIR: {home}/inductor
    HF_HOME: {home}/hf
checkpoints: {{dir: checkpoint}}
policy: {{stop_grace_s: 2}}
preflight: {{tags: [], running_s: 0}} # its nodes are one machine, and that is not in question
"""


@click.command()
@click.option(
    "--trainer-python",
    type=click.Path(path_type=Path, readable=False),
    default=REPO / ".venv-titan" / "bin" / "python",
    help="A Python with TorchTitan; `make demo` makes one.",
)
@click.option(
    "--local",
    is_flag=True,
    help="No Slurm: nodes are processes of this machine. Without root this is what happens.",
)
@click.option("--keep", is_flag=True, help="Leave everything as it is at the end.")
def demo(trainer_python: Path, local: bool, keep: bool) -> None:
    """Lose a node in mid-training and watch superv bring the run back on the spare.

    Starts a Slurm cluster of 2 nodes and a spare in network namespaces of this machine (needs
    root), launches TorchTitan's deepseek_v3 MoE trainer on CPUs, and powers a node off.
    """
    from supervisor.cli.demo_backends import on_slurm, on_this_machine

    if not EXAMPLE.is_dir():
        raise UserError(f"{EXAMPLE}: not there; the demo runs from a checkout of superv")
    if not trainer_python.exists():
        raise UserError(f"{trainer_python}: not there; `make demo` installs TorchTitan into it")
    python = trainer_python.absolute()
    if problem := no_trainer(python):
        raise UserError(f"{trainer_python}: {problem}; `make demo` installs TorchTitan into one")
    if local or os.geteuid() != 0:
        why = "as asked" if local else "a Slurm cluster in namespaces needs root"
        say(f"no Slurm ({why}): 2 nodes and a spare are processes of this machine")
        made = on_this_machine(keep=keep)
    else:
        say("starting a Slurm cluster: a controller, a login node, 2 nodes and a spare")
        made = on_slurm(exposed=python.parent.parent, keep=keep)
    with made as backend:
        try:
            status = play(backend, python)
            terminal.show(["", *timeline(status, backend)])
        finally:
            say(f"kept: {backend.reentry_hint}" if keep else "removing everything")


def no_trainer(python: Path) -> str:
    """Why the demo can't train with this Python, before it makes a cluster; empty where it can."""
    from supervisor import proc

    if not python.is_file() or not os.access(python, os.X_OK):
        return "not a Python that can be run"
    look = "import importlib.util as u; raise SystemExit(0 if u.find_spec('torchtitan') else 9)"
    done = proc.run_sync((str(python), "-c", look), deadline_s=20)
    return {0: "", 9: "has no TorchTitan"}.get(-1 if done.rc is None else done.rc, done.why())


def say(text: str) -> None:
    terminal.show([terminal.styled((f"demo: {text}", "bold"))])


def superv(backend: DemoBackend, *argv: str) -> str:
    """Run superv where its user would. Raises UserError."""
    return backend.run(sys.executable, "-m", "supervisor.cli", *argv)


def play(backend: DemoBackend, python: Path) -> dict[str, Any]:
    """Launch, wait for steps, lose a node, wait for new steps; the run's status then."""
    job = backend.home / "job.yaml"
    say("making a tokenizer and training data")
    backend.run("mkdir", "-p", str(backend.home))
    backend.run(str(python), str(EXAMPLE / "assets.py"), str(backend.home))
    text = JOB.format(
        script=EXAMPLE / "titan_cpu.py",
        python=python,
        launcher=backend.launcher,
        interface=backend.interface,
        home=backend.home,
    )
    backend.run("tee", str(job), stdin=text)
    say(f"superv launch {job}")
    superv(backend, "launch", "--detach", str(job))
    with watching(backend):
        before = until(backend, "step 13", lambda s: (s["step"] or 0) >= STEPS_BEFORE, 180)
        victim = before["slots"][VICTIM_SLOT]["node"]
        say(f"{backend.fault_text} {victim}, which trains in slot {VICTIM_SLOT}")
        backend.lose(victim)
        return until(backend, "new steps on the spare", recovered, 180)


def recovered(status: dict[str, Any]) -> bool:
    last = status["incidents"][-1] if status["incidents"] else None
    return bool(
        last and last["first_step"] and status["step"] >= last["resumed_from"] + STEPS_AFTER
    )


@contextlib.contextmanager
def watching(backend: DemoBackend) -> Iterator[None]:
    """Show what `superv attach` prints meanwhile."""
    import signal

    from supervisor import proc

    # TERM: lines, not the view that renews; the demo writes between them.
    attach = (sys.executable, "-m", "supervisor.cli", "attach", RUN)
    argv = backend.command("env", "TERM=dumb", *attach)
    sys.stdout.flush()
    child = proc.spawn(argv, env={**os.environ, **backend.env}, cwd="/", stdout=1)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(timeout=10)


def until(
    backend: DemoBackend, what: str, reached: Callable[[dict[str, Any]], bool], seconds: float
) -> dict[str, Any]:
    """Ask for the status until it is as wanted. Raises UserError."""
    deadline = time.monotonic() + seconds
    while True:
        status: dict[str, Any] = json.loads(superv(backend, "status", RUN, "--json"))
        if reached(status):
            return status
        if status["phase"] in ENDED:
            raise UserError(f"the run ended ({status['phase']}: {status['reason']})")
        if time.monotonic() > deadline:
            raise UserError(f"{what} did not come within {seconds:.0f} s: {status['reason']}")
        time.sleep(0.5)


def timeline(status: dict[str, Any], backend: DemoBackend) -> list[Any]:
    """The last incident as a table; every time is written down by somebody, who is named."""
    incident = status["incidents"][-1]
    zero, lost, source = backend.fault()
    who = ", ".join(incident["culprits"]) or "nobody"
    slot = next(s for s in status["slots"] if s["slot"] == VICTIM_SLOT)
    witness = next(
        (e["text"] for e in incident["evidence"] if e["source"] not in ("silence", "agent")), ""
    )
    rows = [
        (zero, "fault", lost, source),
        (incident["suspected"], "suspected", "silent: no heartbeat from its agent", "journal"),
        (incident["confirmed"], "confirmed", witness, "journal"),
        (incident["stopped"], "stopped", "the ranks that were left are gone", "journal"),
        (
            incident["judged"],
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
    cells = [
        (terminal.time_of_day(at, 3), f"{at - zero:.2f}s", name, what, source)
        for at, name, what, source in rows
    ]
    columns = (
        terminal.TableColumn("time"),
        terminal.TableColumn("after", right=True),
        terminal.TableColumn(""),
        terminal.TableColumn("what", most=52),
        terminal.TableColumn("from"),
    )
    sum_up = (
        f"{incident['first_step'] - zero:.1f} s from the fault to the first new step; "
        f"{incident['steps_lost']} steps lost (step {incident['step']} was the last before it)"
    )
    return [terminal.table(columns, cells), "", sum_up]
