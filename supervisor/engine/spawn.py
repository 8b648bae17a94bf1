"""Starts a run's engine, a process that lives on by itself, unless one is there."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time

from supervisor import proc
from supervisor.core.errors import TransientError, UserError
from supervisor.engine import control, guardian
from supervisor.engine.request import AdoptionRequest, Request, pack
from supervisor.run import folder

START_S = 20.0  # an engine listens on its socket well within this
ENDING_S = 5.0  # an engine without work to do has gone within this


def alive(run: folder.RunDir) -> UserError:
    """Something was asked of an ended run that has an engine at work."""
    name = run.path.name
    return UserError(f"run {name} is alive; `superv attach {name}` shows it")


class EngineRefused(UserError):
    """The engine said why it can't begin, and is gone."""


def lives(run: folder.RunDir) -> bool:
    """Whether the run has an engine. Raises UserError where that does not answer."""
    try:
        return any(True for _ in control.ask(run.socket, {"do": "status"}))
    except control.NoEngineError:
        return False
    except TransientError as error:
        raise UserError(f"run {run.path.name}: {error}; {mute_fix(run)}") from None


def mute_fix(run: folder.RunDir) -> str:
    """What to do about an engine that is there and does not answer."""
    with contextlib.suppress(control.NoEngineError):
        return (
            f"`kill -9 {control.engine_pid(run.socket)}`, then `superv attach {run.path.name}` "
            "starts another; the ranks notice nothing"
        )
    return f"see {run.log}"


def ensure_engine(
    run: folder.RunDir,
    request: Request | AdoptionRequest | None = None,
    *,
    within_s: float = START_S,
) -> bool:
    """Start the run's engine unless it lives; returns whether it was started. Raises UserError.

    TransientError where another process has the run's journal and does not listen.
    With a `request` an engine that lives on is an error: the run has not ended, or somebody was
    faster. The environment is that of the launch: whoever starts it again changes nothing.
    """
    end = time.monotonic() + ENDING_S
    while lives(run):
        if request is None:
            return False
        if time.monotonic() > end:
            raise alive(run)
        time.sleep(0.05)
    folder.check(run.path)
    launch = request.launch if isinstance(request, Request) else None
    env = folder.read_environment(folder.RunDir(launch) if launch else run)
    asked = os.memfd_create("request", os.MFD_CLOEXEC)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    log = os.open(run.log, flags, 0o600)
    ready, report = os.pipe()
    try:
        if request is not None:
            os.write(asked, pack(request))
            os.lseek(asked, 0, os.SEEK_SET)
        child = proc.spawn(
            (sys.executable, "-m", "supervisor.engine.process", str(run.path), str(report)),
            env=env,
            cwd="/",
            stdin=asked,
            stdout=log,
            pass_fds=(report,),
        )
    finally:
        os.close(asked)
        os.close(log)
        os.close(report)
    with os.fdopen(ready, "rb") as answer:
        there, _, _ = select.select([answer], [], [], within_s)
        word = answer.readline().decode().strip() if there else ""
    if word != "ready":
        end = time.monotonic() + ENDING_S
        while child.poll() is None and word and time.monotonic() < end:
            time.sleep(0.01)
        if child.returncode == guardian.BUSY:
            raise TransientError(f"run {run.path.name}: {word}")
        why = word or f"it did not start within {within_s:.0f} s"
        if word:
            raise EngineRefused(word)
        raise UserError(f"the engine of {run.path.name}: {why}; see {run.log}")
    child.returncode = 0  # it lives on by itself; this process does not wait for it
    return True
