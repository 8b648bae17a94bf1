"""The engine as a process, `python -m supervisor.engine.process RUN_DIR FD [LINE]`: its wiring."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
import sys
import time
from pathlib import Path

import msgspec

from launchers import launcher_of
from supervisor import signatures
from supervisor.channel import wire
from supervisor.channel.link import CurveLink
from supervisor.channel.router import Channel
from supervisor.config import Job, Site, load_site
from supervisor.core import events as ev
from supervisor.core.errors import TransientError, UserError
from supervisor.core.secret import secret_values
from supervisor.engine import control, fleet_recorder, guardian, marking
from supervisor.engine.address import engine_address
from supervisor.engine.adoption import Adoption
from supervisor.engine.clock import SteadyClock
from supervisor.engine.effects import Effects
from supervisor.engine.fleet_recorder import FleetRecorder
from supervisor.engine.guard import Guard
from supervisor.engine.loop import Engine
from supervisor.engine.notifier import Notifier
from supervisor.engine.rank_logs import RankLogs
from supervisor.engine.request import AdoptionRequest, Request, unpack
from supervisor.engine.spawn import ENDING_S, alive
from supervisor.engine.wiring import setup_of, wire_job
from supervisor.host import log
from supervisor.host.shortage import raise_descriptor_limit
from supervisor.run import folder
from supervisor.run.journal import Busy, Journal, JournalError

logger = logging.getLogger(__name__)

LISTENS_S = (
    10.0  # an engine that begins listens within this; whoever starts one waits twice as long
)


async def engine_main(
    run_dir: folder.RunDir,
    ready: int,
    request: Request | AdoptionRequest | None = None,
    guard: Guard | None = None,
) -> None:
    """Live as the run's engine. Raises UserError where it can't begin, Busy where one lives.

    Without a `guard` nobody starts another one.
    """
    site = load_site(os.environ)
    journal = None if isinstance(request, AdoptionRequest) else _journal(run_dir, request)
    if journal is not None and request is None and _nothing_left(journal):
        journal.close()
        _tell(ready, "ready")
        return
    job, code = folder.read_job(run_dir), folder.read_code(run_dir)
    keys = folder.read_server_keys(run_dir)
    secrets = folder.read_secrets(run_dir)
    hidden = secret_values({**job.trainer.env, **secrets}, secrets)
    log.hide(*hidden)
    link = _link(keys)
    launcher = launcher_of(job, site)
    clock = SteadyClock(journal.newest_at if journal is not None else 0.0)
    channel = Channel(link, clock)
    if isinstance(request, AdoptionRequest):
        bind = functools.partial(_bind, link, job, site, "")
        adoption = Adoption(run_dir, job, site, keys, channel, launcher, bind)
        journal = await adoption.journal(request.who)
        endpoint = adoption.endpoint
    else:
        assert journal is not None and journal.run is not None
        endpoint = _bind(link, job, site, journal.run.endpoint)
    assert journal.run is not None
    run_id = journal.run.spec.run_id
    ranks = wire_job(job, site, run_id, code, secrets, fleet_recorder.repairs(site.fleet))
    engine = Engine(journal=journal, channel=channel, job=ranks, now=clock)
    engine.job_file = run_dir.origin()
    effects = Effects(
        setup=setup_of(
            job, site, run_id, keys.server_secret, (run_dir.code, code) if code else None
        ),
        launcher=launcher,
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
        apply=engine.apply,
        now=clock,
        failed=engine.fail,
        logs=RankLogs(
            engine.agent_rpc, lambda: engine.run, home=run_dir.logs, secrets=hidden, now=clock
        ),
    )
    recorder = FleetRecorder(site.fleet, job.name, clock, site.claims_dir)
    engine.on_health_report = recorder.record
    engine.start(effects, endpoint, socket.gethostname(), _asked(request))
    following = asyncio.ensure_future(
        recorder.follow(lambda: engine.run, engine.operator_exclusions_read, engine.repairs_read)
    )
    notifier = Notifier(engine, [one.command for one in (*site.notify, *job.notify)])
    telling = asyncio.ensure_future(notifier.follow())
    try:
        await _lived(engine, run_dir, job, ready, guard, notifier)
    finally:
        telling.cancel()
        following.cancel()
        recorder.close(engine.run)
        channel.close()
        journal.close()
    logger.info(f"engine ends: run is {engine.run.phase.value}")


async def _lived(
    engine: Engine,
    run_dir: folder.RunDir,
    job: Job,
    ready: int,
    guard: Guard | None,
    notifier: Notifier,
) -> None:
    """Until the engine ends, with a guardian and a socket for people."""
    server = await control.serve(engine, run_dir.socket)
    if guard is not None:
        guard.watch()
    _tell(ready, "ready")
    try:
        await engine.run_until_ended()
        if guard is not None:
            guard.over()
        await notifier.finish()
    finally:
        await asyncio.sleep(1.5)  # those who watch read the last lines
        await marking.released(job, engine.run)
        server.close()
        run_dir.socket.unlink(missing_ok=True)


def _asked(request: Request | AdoptionRequest | None) -> ev.Event | None:
    return request.event if isinstance(request, Request) else None


def _nothing_left(journal: Journal) -> bool:
    """Whether the run has ended, and with it all that was begun for it."""
    run = journal.run
    return run is not None and run.ended and not run.live_jobs and not run.pending


def _journal(run_dir: folder.RunDir, request: Request | None) -> Journal:
    """The run's journal, and with it the files of a new launch. Raises UserError, Busy."""
    try:
        run_dir.journal.stat()  # opened for writing it would be made
        journal = Journal(run_dir.journal) if request is None else _journal_of_ended(run_dir)
    except (JournalError, OSError):
        run_dir.load()  # raises, and says what to do
        raise
    if journal.torn:
        logger.warning(f"cut {journal.torn} bytes of a half-written line off the journal")
    if journal.run is None:
        journal.close()
        run_dir.load()
    if request is not None and request.launch is not None:
        folder.replace_launch(run_dir, folder.RunDir(request.launch))
    return journal


def _journal_of_ended(run_dir: folder.RunDir) -> Journal:
    """The journal of a run that has ended; an engine that is just ending lets go of it.

    Raises UserError where the run is alive.
    """
    end = time.monotonic() + ENDING_S
    while True:
        try:
            journal = Journal(run_dir.journal)
            break
        except Busy:
            if time.monotonic() > end:
                raise alive(run_dir) from None
        time.sleep(0.05)
    if journal.run is not None and not journal.run.ended:
        raise alive(run_dir)
    return journal


def _link(keys: folder.ServerKeys) -> CurveLink:
    log.hide(keys.server_secret, keys.client_secret)
    return CurveLink(
        keys.server_public.encode(), keys.server_secret.encode(), keys.client_public.encode()
    )


def _bind(link: CurveLink, job: Job, site: Site, before: str) -> str:
    """Listen; at the endpoint of the engine before this one, if there was one and it is free."""
    before = before.rpartition(":")[2]
    ports = (site.engine_ports.first, site.engine_ports.last)
    try:
        return link.bind(engine_address(job, site), ports, int(before) if before else None)
    except OSError as error:
        raise UserError(f"site.yaml: engine_ports: {error}") from None


def _tell(ready: int, word: str) -> None:
    """Tell who started this engine; they may be gone by now, which is nothing to a run."""
    with contextlib.suppress(BrokenPipeError):
        os.write(ready, f"{word}\n".encode())


def _beside_another(run_dir: folder.RunDir, ready: int, why: str) -> int:
    """Another process has the journal. Where that is an engine which listens, the run has one.

    Else it may be one that is just beginning, and may die before anybody looks after it, or no
    engine at all: that is no success, and no failure of this one.
    """
    end = time.monotonic() + LISTENS_S
    while True:
        try:
            control.engine_pid(run_dir.socket)
        except control.NoEngineError:
            if time.monotonic() < end:
                time.sleep(0.05)
                continue
            text = f"{why}, and does not listen; try again in a moment"
            logger.warning(text)
            _tell(ready, text)
            return guardian.BUSY
        _tell(ready, "ready")
        return 0


def main(argv: list[str]) -> int:
    """An engine for the run in RUN_DIR; it tells the descriptor FD when it is ready.

    A third argument is the descriptor of the line to the guardian that has started it.
    """
    ready, run_dir = int(argv[1]), folder.RunDir(Path(argv[0]))
    guard = Guard(run_dir, int(argv[2]) if len(argv) > 2 else None)
    log.start(run_dir.log)
    raise_descriptor_limit()
    signatures.load()  # while storage answers: a verdict needs them
    try:
        request = unpack(sys.stdin.buffer.read())
        asyncio.run(engine_main(run_dir, ready, request, guard))
    except Busy as error:
        return _beside_another(run_dir, ready, str(error))
    except (UserError, TransientError) as error:
        logger.error(str(error))
        _tell(ready, str(error))
        return 2 if isinstance(error, UserError) else 1
    except OSError as error:
        logger.error(f"{error.filename}: {error.strerror}")
        _tell(ready, f"{error.filename}: {error.strerror}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
