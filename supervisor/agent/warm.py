"""The agent's side of the warm starter: a preloaded process that ranks are forked from."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess  # noqa: TID251 - for the type of a child only; supervisor.proc starts it
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from supervisor import hooks, proc
from supervisor.agent import containers, tree
from supervisor.channel.wire import RankJob
from supervisor.host import private, procfs

logger = logging.getLogger(__name__)


LOAD_S = 600.0  # the imports of a cold file system end within this
CHECK_S = 2.0  # looking at the imported files' times; storage that takes longer is not waited for
FORK_S = 10.0
QUIET_S = 3.0  # ranks are forked ahead when nothing was ordered and none ended for so long
STATUS_S = 5.0  # a living starter reports a rank's end right after the kernel did

# Read while the agent starts: later the storage that it was installed on may hang.
STARTER = (Path(__file__).parent / "starter.py").read_bytes()
HOOKS = {name: (Path(hooks.__file__).parent / f"{name}.py").read_bytes() for name in hooks.ADAPTERS}
# Libraries whose threads would poison a fork, and torch's way to count GPUs without CUDA.
# (OpenBLAS by numpy; jemalloc by Arrow; PYTORCH_NVML_BASED_CUDA_CHECK: torch/cuda/__init__.py)
LOADING_ENV = {
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}


class Cold(Exception):
    """Ranks can't be forked; the text says why. They are started without a preloaded parent."""


def write_files(node_dir: Path, job: RankJob) -> tuple[Path, Path | None]:
    """Put the starter and the hook where the ranks' Python finds them; returns their paths."""
    place = node_dir / "starter"
    place.mkdir(mode=0o700, exist_ok=True)
    script = place / "superv_starter.py"
    private.write(script, STARTER)
    if not job.hook:
        return script, None
    hook = place / f"superv_hook_{job.hook}.py"
    private.write(hook, HOOKS[job.hook])
    return script, hook


class Starter:
    """A preloaded process. It may fail or die at any time: then ranks start cold, and say so."""

    def __init__(
        self,
        job: RankJob,
        node_dir: Path,
        mark: str,
        *,
        quiet_s: float = QUIET_S,
    ) -> None:
        self._job = job
        self._quiet_s = quiet_s
        self._dir = node_dir
        self._mark = mark
        self._child: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._rest = b""
        self._loaded: asyncio.Future[None] | None = None
        self._why = ""  # why it can't fork, once that is known
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._status: dict[int, asyncio.Future[int]] = {}  # by pid of a rank
        self._serving = 0  # its own pid in a container, where the child is the runtime's process
        self._waiting: set[int] = set()  # pids that were forked ahead and are no ranks yet

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    @property
    def pids(self) -> frozenset[int]:
        """Its processes that are no ranks."""
        own = set() if self._child is None else {self._child.pid}
        if self._job.container is not None:
            own |= self._runtime_pids()
        return frozenset(own | self._waiting)

    def _runtime_pids(self) -> set[int]:
        """Processes of its container that are neither ranks nor below them."""
        found = [] if self._child is None else [self._child.pid]
        for pid in found:
            if pid != self._serving:  # whose children are the ranks
                found += procfs.children(pid)
        return set(found)

    def start(self) -> None:
        """Begin to preload; returns at once. Without room for its files, ranks start cold."""
        self._why, self._rest = "", b""
        self._serving = 0
        self._waiting.clear()
        self._loaded = asyncio.get_running_loop().create_future()
        try:
            self._start()
        except OSError as error:
            self._failed(f"{error.filename or self._job.python}: {error.strerror}")

    def restore(self) -> list[str]:
        """Write its files again where one is missing. Raises OSError.

        The process that has read them does not need them; ranks that start cold do, and the next.
        """
        place = self._dir / "starter"
        hook = [f"superv_hook_{self._job.hook}.py"] if self._job.hook else []
        gone = [name for name in ("superv_starter.py", *hook) if not (place / name).exists()]
        if gone:
            write_files(self._dir, self._job)
        return gone

    def _start(self) -> None:
        """Raises OSError."""
        script, hook = write_files(self._dir, self._job)
        order = self._dir / "starter" / "serve.json"
        document = {
            "argv": self._job.entry or self._job.fresh,
            "cwd": self._job.container.workdir if self._job.container else self._job.workdir,
            "stays": self._job.container is not None,
            "path": self._job.path,
            "preload": self._job.preload,
            "hook": str(hook) if hook else "",
            "quiet_s": self._quiet_s,
        }
        private.write(order, json.dumps(document).encode())
        base, cwd = dict(os.environ), self._job.workdir
        seen = base if self._job.container is None else containers.of_node(base)
        env = LOADING_ENV | seen | self._job.env | {tree.MARK: self._mark + "starter"}
        if self._job.ranks_per_node > 1:
            env.setdefault("OMP_NUM_THREADS", "1")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        log = os.open(self._dir / "starter" / "log", flags, 0o600)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            argv = [self._job.python, str(script), "serve", str(theirs.fileno()), str(order)]
            if self._job.container is not None:
                node, cwd = self._mark.split("/")[1], "/"
                argv, env = containers.wrapped(
                    self._job.container,
                    argv,
                    env,
                    self._dir / "starter" / "serve.env",
                    base,
                    node,
                    self._dir,
                )
            self._child = proc.spawn(
                argv,
                env=env,
                cwd=cwd,
                stdout=log,
                pass_fds=(theirs.fileno(),),
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(log)
        self._channel = ours
        asyncio.get_running_loop().add_reader(ours, self._readable, ours)

    def _failed(self, why: str) -> None:
        """No rank can be forked from it any more."""
        self._waiting.clear()  # they end with it, and others may get their numbers
        self._why = self._why or why
        logger.warning(f"no warm starts: {self._why}")
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(None)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Cold(self._why))
        self._answers.clear()
        for status in self._status.values():
            status.cancel()

    def _readable(self, link: socket.socket) -> None:
        try:
            data = link.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(link)
            link.close()
            if link is self._channel:
                self._channel = None
                self._failed("the starter ended")
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._heard(json.loads(line))

    def _heard(self, words: dict[str, Any]) -> None:
        if "serving" in words:
            self._serving = words["serving"]
        elif "waiting" in words:
            self._waiting.add(words["waiting"])
        elif "status" in words and words["pid"] in self._waiting:
            self._waiting.discard(words["pid"])
        elif "status" in words:
            status = self._status_of(words["pid"])
            if not status.done():
                status.set_result(words["status"])
        elif "ready" in words:
            logger.info(f"preloaded {words['files']} files in {words['took_s']:.1f} s")
            if self._loaded is not None and not self._loaded.done():
                self._loaded.set_result(None)
        elif "failed" in words:
            self._failed(f"preloading failed: {words['failed']}")
        elif "checked" in words:
            self._answer("check", words)
        elif "rank" in words:
            self._waiting.discard(words.get("pid", 0))
            self._answer(f"rank{words['rank']}", words)

    def _answer(self, key: str, words: dict[str, Any]) -> None:
        answer = self._answers.pop(key, None)
        if answer is not None and not answer.done():
            answer.set_result(words)

    def _status_of(self, pid: int) -> asyncio.Future[int]:
        if pid not in self._status:
            self._status[pid] = asyncio.get_running_loop().create_future()
        return self._status[pid]

    async def exit_status(self, pid: int) -> int | None:
        """The wait status of a forked rank that has ended; None where nobody knows it."""
        status = self._status_of(pid)
        if self._channel is None:
            status.cancel()
        await asyncio.wait({status}, timeout=STATUS_S)
        self._status.pop(pid, None)
        return status.result() if status.done() and not status.cancelled() else None

    async def _ask(self, key: str, words: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        if self._channel is None or self._why:
            raise Cold(self._why or "there is no starter")
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[key] = answer
        await asyncio.get_running_loop().sock_sendall(
            self._channel, json.dumps(words).encode() + b"\n"
        )
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            raise Cold(f"the starter did not answer within {seconds:.0f} s") from None
        finally:
            self._answers.pop(key, None)

    async def reload_if_changed(self) -> None:
        """Preload again where it is dead, or where a file that was imported has changed on disk."""
        if self._loaded is not None and not self._loaded.done():
            return
        why = self._why
        if not why:
            with contextlib.suppress(Cold):  # then the fork will say so
                changed = (await self._ask("check", {"check": True}, CHECK_S))["changed"]
                why = f"{changed} changed on disk" if changed else ""
        if why:
            logger.info(f"preloading again: {why}")
            self.stop()
            self.start()

    async def fork(self, orders: Sequence[Mapping[str, Any]]) -> dict[int, int]:
        """Fork the ranks; returns their pids by rank. Raises Cold, and then none is left."""
        assert self._loaded is not None
        try:
            async with asyncio.timeout(LOAD_S):
                await asyncio.shield(self._loaded)
        except TimeoutError:
            raise Cold(f"preloading took more than {LOAD_S:.0f} s") from None
        pids: dict[int, int] = {}
        try:
            answers = await asyncio.gather(
                *(self._ask(f"rank{order['rank']}", order, FORK_S) for order in orders),
                return_exceptions=True,
            )
            for words in answers:
                if isinstance(words, BaseException):
                    raise words
                if "unsafe" in words:
                    raise Cold(words["unsafe"])
                pids[words["rank"]] = words["pid"]
        except asyncio.CancelledError:
            self.stop()  # it may fork them yet; without it there is nobody who could
            self._why = "a start was given up"
            raise
        except Cold:
            for words in answers:
                if isinstance(words, dict) and "pid" in words:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(words["pid"], signal.SIGKILL)
            raise
        return pids

    def stop(self) -> None:
        """End the starter; ranks that it forked go on."""
        link, self._channel = self._channel, None
        if link is not None:
            asyncio.get_running_loop().remove_reader(link)
            link.close()
        self._waiting.clear()
        child, self._child = self._child, None
        if child is not None:
            proc.give_up(child)
