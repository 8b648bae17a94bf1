"""Wires the concrete parts together; the only place that reads the wall clock for decisions."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from launchers import load as load_launcher
from supervisor import control, proc, runs, snapshot, wire
from supervisor.bookkeeping import Books
from supervisor.channel import Channel
from supervisor.config import Job, Site, load_site, parse_job
from supervisor.core import actions as do
from supervisor.core import events as ev
from supervisor.core.errors import TransientError, UserError
from supervisor.core.machine import step
from supervisor.core.ports import LaunchSpec, Plan
from supervisor.core.types import Run, RunSpec
from supervisor.effects import Effects, Setup
from supervisor.engine import Engine
from supervisor.journal import Busy, Journal
from supervisor.snapshot import Snapshot

NOBODY = "0" * 12  # stands for a run's id that is not made yet
START_S = 20.0  # an engine listens on its socket well within this


def clock() -> float:
    """Seconds since the epoch, steady: the wall clock is read once for each process."""
    return _WALL + (time.monotonic() - _MONOTONIC)


_WALL, _MONOTONIC = time.time(), time.monotonic()


# --- from the user's files to what the parts need ----------------------------------------------


def agent_paths(job: Job, site: Site, run_id: str) -> tuple[str, str]:
    """Node-local: the key file that the launcher delivers, and the agent's directory."""
    base = f"{site.node_dir}/superv-{os.getuid()}-{run_id}"
    return f"{base}.key", f"{base}.{{node}}" if job.launcher == "local" else base


def agent_argv(job: Job, site: Site, run_id: str) -> tuple[str, ...]:
    """The command of every node: this very interpreter, isolated from the user's settings."""
    return (sys.executable, "-I", "-m", "supervisor.agent", *agent_paths(job, site, run_id))


def wire_job(job: Job, site: Site, run_id: str, code: Snapshot | None) -> wire.Job:
    """How agents start ranks."""
    trainer = job.trainer
    entry, env = trainer.entry(), dict(trainer.env)
    if code is not None:
        entry = tuple(code.word(word) for word in entry)
        env = {k: code.word(v) if k == "PYTHONPATH" else v for k, v in env.items()}
    fresh = resumed = entry
    if job.checkpoints is not None and trainer.hook != "none":
        hook = importlib.import_module(f"supervisor.hooks.{trainer.hook}")
        fresh, resumed = entry + hook.FRESH, entry + hook.RESUMED
    return wire.Job(
        run_id=run_id,
        name=job.name,
        python="" if trainer.command else trainer.python,
        fresh=fresh,
        resumed=resumed,
        preload=trainer.preload,
        hook="" if trainer.hook == "none" else trainer.hook,
        workdir=str(trainer.workdir),
        env=env,
        ranks_per_node=trainer.ranks_per_node,
        step_pattern=job.progress.step,
        resumed_pattern=job.progress.resumed or "",
        rank_ports=(site.rank_ports.first, site.rank_ports.last),
        log_cap=site.log_cap_mb * 1_000_000,
        orphan_s=job.policy.orphan_s,
        code=code.digest if code is not None else "",
        path=code.path if code is not None else "",
        health=_health(job, site),
    )


def _health(job: Job, site: Site) -> wire.Health | None:
    """Which health checks agents run. A job's settings come before the site's."""
    plan = job.preflight
    if not plan.tags and not plan.running_s:
        return None
    sources = (_told_by_the_trainer(job), site.checks, plan.checks)
    names = {name for source in sources for name in source}
    settings = {n: {k: v for s in sources for k, v in s.get(n, {}).items()} for n in names}
    return wire.Health(
        tags=plan.tags, running_s=plan.running_s, deadline_s=plan.deadline_s, settings=settings
    )


def suites(job: Job, site: Site) -> dict[str, tuple[str, ...]]:
    """The names of the checks that agents run before ranks and beside them.

    Raises UserError for a suite, a check or a setting of one that does not exist.
    """
    from healthchecks.registry import named, select, settings_for

    plan = _health(job, site)
    if plan is None:
        return {}
    for name, given in plan.settings.items():
        settings_for(named(name, "checks of the job or the site"), given)
    found = {}
    if plan.tags:
        found["before"] = tuple(c.name for c in select(tags=plan.tags))
    if plan.running_s:
        found["beside"] = tuple(c.name for c in select(tags=("running",)))
    return found


def _told_by_the_trainer(job: Job) -> dict[str, dict[str, Any]]:
    """What checks can know from the rest of job.yaml: whose NCCL, how many ranks, which network."""
    trainer = job.trainer
    found: dict[str, dict[str, Any]] = {
        "cpu.binding": {"ranks_per_node": trainer.ranks_per_node},
    }
    if trainer.python.startswith("/") and not trainer.command:
        found["cuda.libs"] = {"python": trainer.python}
    if interfaces := trainer.env.get("NCCL_SOCKET_IFNAME"):
        found["nccl.interfaces"] = {"socket_ifname": interfaces}
    return found


def run_spec(job: Job, run_id: str, first_attempt: int = 1) -> RunSpec:
    return RunSpec(
        name=job.name,
        run_id=run_id,
        nodes=job.nodes,
        spares=job.spares,
        ranks_per_node=job.trainer.ranks_per_node,
        checkpoint_dir=str(job.checkpoints.dir) if job.checkpoints else None,
        policy=job.policy,
        first_attempt=first_attempt,
        keep=job.checkpoints.keep if job.checkpoints else 0,
        keep_every=job.checkpoints.keep_every if job.checkpoints else 0,
        preflight=bool(job.preflight.tags),
    )


def code_question(job: Job, site: Site) -> dict[str, Any]:
    """What supervisor.snapshot needs to know to find the trainer's code."""
    trainer = job.trainer
    data = [site.state_dir, site.node_dir, *([job.checkpoints.dir] if job.checkpoints else [])]
    return {
        "entry": trainer.entry(),
        "script": str(trainer.script or ""),
        "module": trainer.module is not None,
        "workdir": str(trainer.workdir),
        "pythonpath": trainer.env.get("PYTHONPATH", ""),
        "leave": [str(path) for path in data],
    }


def setup_of(job: Job, site: Site, run_id: str, code: tuple[Path, Snapshot] | None = None) -> Setup:
    keys_path = agent_paths(job, site, run_id)[0]
    packed = (code[0], wire.code_path(keys_path, code[1].digest)) if code else None
    return Setup(
        code=packed,
        slurm=dict(job.slurm),
        agent_argv=agent_argv(job, site, run_id),
        log_path=f"{site.node_dir}/superv-{job.name}-%j.log",
        keys_path=keys_path,
        required=job.checkpoints.required if job.checkpoints else (),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What `superv launch` would do, exactly."""

    plan: Plan
    spec: LaunchSpec
    job: wire.Job
    env: Mapping[str, str]
    code: Snapshot | None


def dry_run(job: Job, site: Site) -> DryRun:
    """Render everything; touches nothing. The run's id is random, here it is zeros."""
    code = snapshot.take(code_question(job, site), None) if job.trainer.snapshot else None
    would, spec = plan(job, site)
    return DryRun(
        plan=would,
        spec=spec,
        job=wire_job(job, site, NOBODY, code),
        env=dict(job.trainer.env),
        code=code,
    )


def plan(job: Job, site: Site) -> tuple[Plan, LaunchSpec]:
    """The first submission of a run, with zeros for its id. Raises UserError."""
    first = ev.Launched(at=0.0, spec=run_spec(job, NOBODY))
    _, (submit, *_) = step(None, first)
    assert isinstance(submit, do.Submit)
    setup = setup_of(job, site, NOBODY)
    spec = LaunchSpec(
        job_name=submit.job_name,
        nodes=submit.nodes,
        slurm=setup.slurm,
        agent_argv=setup.agent_argv,
        log_path=setup.log_path,
    )
    return load_launcher(job.launcher).plan(spec), spec


# --- the engine's process ----------------------------------------------------------------------


class EngineRefused(UserError):
    """The engine said why it can't begin, and is gone."""


def ensure_engine(run: runs.RunDir) -> bool:
    """Start the run's engine unless it lives; returns whether it was started. Raises UserError.

    Its environment is that of the launch: whoever starts it again changes nothing.
    """
    try:
        for _ in control.ask(run.socket, {"do": "status"}):
            return False
    except control.NoEngineError:
        pass
    except TransientError as error:
        raise UserError(f"{error}; see {run.log}") from None
    env = runs.read_environment(run)
    log = os.open(run.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    ready, tell = os.pipe()
    try:
        child = proc.spawn(
            (sys.executable, "-m", "supervisor.app", str(run.path), str(tell)),
            env=env,
            cwd="/",
            stdout=log,
            pass_fds=(tell,),
        )
    finally:
        os.close(log)
        os.close(tell)
    with os.fdopen(ready, "rb") as answer:
        import select

        there, _, _ = select.select([answer], [], [], START_S)
        word = answer.readline().decode().strip() if there else ""
    if word != "ready":
        child.poll()
        why = word or f"it did not start within {START_S:.0f} s"
        if word:
            raise EngineRefused(word)
        raise UserError(f"the engine of {run.path.name}: {why}; see {run.log}")
    child.returncode = 0  # it lives on by itself; this process does not wait for it
    return True


def engine_address(job: Job | None, site: Site) -> str:
    """Where agents reach this machine. Raises UserError where that can't be told."""
    if job is not None and job.launcher == "local":
        return "127.0.0.1"
    wanted = site.engine_address or socket.gethostname()
    if site.engine_address and Path(f"/sys/class/net/{site.engine_address}").exists():
        import fcntl
        import struct

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            packed = struct.pack("256s", site.engine_address[:15].encode())
            try:
                answer = fcntl.ioctl(asked.fileno(), 0x8915, packed)  # SIOCGIFADDR
            except OSError as error:
                why = error.strerror
                raise UserError(f"site.yaml: engine_address: {wanted}: {why}") from None
            return socket.inet_ntoa(answer[20:24])
    try:
        found = socket.getaddrinfo(wanted, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(
            f"site.yaml: engine_address: {wanted}: {error}; set the address that nodes reach"
        ) from None
    address = str(found[0][4][0])
    if address.startswith("127."):
        raise UserError(
            f"this machine's name {wanted} means {address}, which no node reaches; "
            "set engine_address in site.yaml"
        )
    return address


def _note(text: str) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime())
    with contextlib.suppress(OSError):  # the disk is full: the journal's failure ends the engine
        sys.stdout.write(f"{stamp} {text}\n")
        sys.stdout.flush()


async def engine_main(run_dir: runs.RunDir, ready: int) -> None:
    """Live as the run's engine. Raises UserError where it can't begin, Busy where one lives."""
    site = load_site(os.environ)
    source, origin = run_dir.job_file.read_text(), Path(run_dir.origin_file.read_text())
    job, code = parse_job(source, origin), runs.read_code(run_dir)
    journal = Journal(run_dir.journal)
    if journal.torn:
        _note(f"cut {journal.torn} bytes of a half-written line off the journal")
    if journal.run is None:
        raise UserError(f"{run_dir.journal}: empty; launch the run again")
    run_id = journal.run.spec.run_id
    keys = runs.read_server_keys(run_dir)
    channel = Channel(
        keys.server_public.encode(), keys.server_secret.encode(), keys.client_public.encode()
    )
    channel.note = _note
    endpoint = _bind(channel, job, site, journal.run)
    engine = Engine(
        journal=journal,
        channel=channel,
        job=wire_job(job, site, run_id, code),
        now=clock,
        note=_note,
    )
    effects = Effects(
        setup=setup_of(job, site, run_id, (run_dir.code, code) if code else None),
        launcher=load_launcher(job.launcher),
        channel=channel,
        key_file=lambda: msgspec.json.encode(
            wire.Keys(
                wire=wire.WIRE,
                run_id=run_id,
                endpoint=endpoint,
                server_key=keys.server_public,
                public_key=keys.client_public,
                secret_key=keys.client_secret,
            )
        ),
        run=lambda: engine.run,
        take=engine.take,
        now=clock,
    )
    books = Books(site.fleet, job.name, clock, _note)
    engine.record = books.record
    engine.begin(effects, endpoint, socket.gethostname())
    following = asyncio.ensure_future(books.follow(lambda: engine.run, engine.barred))
    server = await control.serve(engine, run_dir.socket)
    os.write(ready, b"ready\n")
    try:
        await engine.live()
    finally:
        await asyncio.sleep(1.5)  # those who watch read the last lines
        server.close()
        following.cancel()
        books.close(engine.run)
        run_dir.socket.unlink(missing_ok=True)
        channel.close()
        journal.close()
    _note(f"engine ends: run is {engine.run.phase.value}")


def _bind(channel: Channel, job: Job, site: Site, run: Run) -> str:
    """Listen where the engine before this one did, if that is free."""
    before = run.endpoint.rpartition(":")[2]
    ports = (site.engine_ports.first, site.engine_ports.last)
    try:
        return channel.bind(engine_address(job, site), ports, int(before) if before else None)
    except OSError as error:
        raise UserError(f"site.yaml: engine_ports: {error}") from None


def main(argv: list[str]) -> int:
    """`python -m supervisor.app RUN_DIR FD`: an engine that tells FD when it is ready."""
    ready = int(argv[1])
    try:
        asyncio.run(engine_main(runs.RunDir(Path(argv[0])), ready))
    except Busy:
        os.write(ready, b"ready\n")  # another engine was faster: the run has one
        return 0
    except UserError as error:
        _note(str(error))
        with contextlib.suppress(OSError):  # who started it has heard "ready", and is gone
            os.write(ready, f"{error}\n".encode())
        return 2
    except OSError as error:
        _note(f"{error.filename}: {error.strerror}")
        with contextlib.suppress(OSError):
            os.write(ready, f"{error.filename}: {error.strerror}\n".encode())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
