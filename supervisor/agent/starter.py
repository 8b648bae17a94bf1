"""The warm starter and the first lines of every hooked rank: runs in the trainer's own Python.

Standard library only, and nothing of superv is imported: the agent writes a copy of this file to
node-local disk and runs it there with the trainer's interpreter.

    starter.py serve FD ORDER     import what is to be preloaded, then fork ranks as told on FD
    starter.py rank ORDER         be one rank, without a preloaded parent

ORDER is a JSON file: {argv, env, cwd, path, log, rank, hook, state, bell, stacks, promised}; for
`serve` {argv, cwd, path, preload, hook}. `argv` is what follows `python` on a command line: "-m",
MODULE, … or SCRIPT, ….

On FD the agent sends orders, a JSON line each; the starter answers with lines: {"ready", "took_s",
"files"}, {"failed"}, {"rank", "pid"}, {"unsafe"}, {"pid", "status"}. When the agent's end closes,
the starter ends; its ranks go on.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

PHASES = ("import", "build", "load", "step", "save", "done")
# magic, phase, step, resumed step, time of the last change, first time of each phase, first step's
STATE = struct.Struct("=4sIqqd6dd")
MAGIC = b"SVR1"
STACKS_SIGNAL = signal.SIGRTMIN + 6  # asks a rank for its stacks; trainers and NCCL use USR1, USR2


class Rank:
    """What a hook tells of its rank: to shared memory, with a datagram that says so.

    A rank without a state file (no agent to tell) keeps it to itself.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self.number = order.get("rank", -1)
        self.promised = order.get("promised")  # the step that it must have resumed from
        self.resumed = -1
        self.step = 0
        self._phase = 0
        self._first = [0.0] * len(PHASES)
        self._first_step = 0.0
        self._bell_path = order.get("bell") or ""
        self._bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._bell.setblocking(False)
        self._memory: mmap.mmap | None = None
        if order.get("state"):
            fd = os.open(order["state"], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.ftruncate(fd, STATE.size)
            self._memory = mmap.mmap(fd, STATE.size)
            os.close(fd)
        self.phase("import")

    def phase(self, name: str) -> None:
        """Enter a phase."""
        self._phase = PHASES.index(name)
        if not self._first[self._phase]:
            self._first[self._phase] = time.time()
        self._tell()

    def begin(self, step: int) -> None:
        """A step begins. The first one must be the one after the promised checkpoint's."""
        if self.resumed < 0:
            self.resumed = step - 1
            if self.promised is not None and self.resumed != self.promised:
                self._tell()
                raise RuntimeError(
                    f"superv: this rank came back at step {self.resumed}, "
                    f"promised was step {self.promised}: it stops before it saves anything"
                )
        self.phase("step")

    def finished(self, step: int) -> None:
        """A step is done."""
        self.step = step
        if not self._first_step:
            self._first_step = time.time()
        self._tell()

    def _tell(self) -> None:
        if self._memory is not None:
            self._memory[:] = STATE.pack(
                MAGIC,
                self._phase,
                self.step,
                self.resumed,
                time.time(),
                *self._first,
                self._first_step,
            )
        if self._bell_path:
            with contextlib.suppress(OSError):  # no agent now, or it is behind: the next one counts
                self._bell.sendto(b"%d" % self.number, self._bell_path)


class WhenImported:
    """Calls a function with a module right after that module was imported."""

    def __init__(self, patches: dict[str, Callable[[Any], None]]) -> None:
        self._patches = patches  # module name → function

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in self._patches:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                self._wrap(spec.loader, self._patches[name])
                return spec
        return None

    @staticmethod
    def _wrap(loader: Any, patch: Callable[[Any], None]) -> None:
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            patch(module)

        loader.exec_module = exec_module


current: Rank | None = None  # the Rank of this process; hooks reach it through `rank()`


def rank() -> Rank | None:
    return current


def load_hook(path: str | None) -> None:
    """Run a hook's `install(rank)`; its patches wait for the trainer's modules."""
    if not path:
        return
    import importlib.util

    spec = importlib.util.spec_from_file_location("superv_hook", path)
    assert spec is not None and spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    sys.meta_path.insert(0, WhenImported(hook.patches(rank)))


def as_main(argv: list[str]) -> None:
    """Run the trainer as `python ARGV` would."""
    import runpy

    if argv[0] == "-m":
        sys.argv = ["-m", *argv[2:]]
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(argv)
        runpy.run_path(argv[0], run_name="__main__")


def first_path(argv: list[str], cwd: str) -> None:
    """sys.path[0] as Python sets it: the script's folder, or for -m the working directory.

    `cwd` is the copy of that directory where the trainer's code is a copy.
    """
    if getattr(sys.flags, "safe_path", False):
        return
    sys.path[0] = cwd if argv[0] == "-m" else os.path.dirname(os.path.realpath(argv[0]))


# --- one rank ---------------------------------------------------------------------------------


def become(order: dict[str, Any]) -> None:
    """This process is a rank from here on."""
    global current
    import faulthandler

    faulthandler.enable()
    if order.get("stacks"):
        out = open(order["stacks"], "a")  # noqa: SIM115 - stays open for the handler
        faulthandler.register(STACKS_SIGNAL, file=out, all_threads=True, chain=False)
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.prctl(15, b"rank%d" % order.get("rank", 0), 0, 0, 0)  # PR_SET_NAME
        libc.prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER, any: for py-spy
    current = Rank(order)


def cold(order: dict[str, Any]) -> None:
    first_path(order["argv"], order.get("path") or order["cwd"])
    become(order)
    load_hook(order.get("hook"))
    as_main(order["argv"])


# --- serving ----------------------------------------------------------------------------------


def unsafe() -> str:
    """Why a fork of this process would be poisoned, or an empty string."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        names = []
        for task in os.listdir("/proc/self/task"):
            with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/comm") as comm:
                names.append(comm.read().strip())
        return f"the preloaded process has {threads} threads ({', '.join(sorted(names))})"
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target.startswith("/dev/nvidia") and not target.startswith("/dev/nvidiactl"):
                return f"the preloaded process has {target} open: CUDA is initialised"
    return ""


def preload(names: list[str]) -> None:
    """Import the modules; afterwards nothing of the collector's touches their pages."""
    import gc
    import importlib

    # The last ones are what every rank needs before its first line: 6 ms if each imports them.
    for name in (*names, "faulthandler", "logging", "pkgutil", "random", "runpy"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def imported_files() -> dict[str, tuple[int, int]]:
    """Path, size and mtime of every module's file, to see later whether one changed."""
    found: dict[str, tuple[int, int]] = {}
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and path not in found:
            with contextlib.suppress(OSError):
                info = os.stat(path)
                found[path] = (info.st_size, info.st_mtime_ns)
    return found


def changed(files: dict[str, tuple[int, int]]) -> str:
    """The first file that is not what was imported, or an empty string."""
    for path, (size, mtime) in files.items():
        try:
            info = os.stat(path)
        except OSError:
            return path
        if (info.st_size, info.st_mtime_ns) != (size, mtime):
            return path
    return ""


def refresh(order: dict[str, Any]) -> None:
    """Make a forked rank what a new interpreter would be."""
    import logging
    import random

    for number in range(1, signal.NSIG):
        with contextlib.suppress(OSError, ValueError):
            if signal.getsignal(number) not in (signal.SIG_DFL, None):
                signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.environ.clear()
    os.environ.update(order["env"])
    logging.root.handlers[:] = []
    logging.root.setLevel(logging.WARNING)
    random.seed()
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        numpy.random.seed()
    if torch is not None:
        torch.manual_seed(torch.default_generator.initial_seed())
        if os.environ.get("OMP_NUM_THREADS", "").isdigit():
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


class Server:
    """Forks ranks. `serve` returns only in a forked rank, with its order."""

    def __init__(self, fd: int) -> None:
        self._link = socket.socket(fileno=fd)
        self._files: dict[str, tuple[int, int]] = {}
        self._wake, self._wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._wake_write, False)

    def say(self, **words: Any) -> None:
        with contextlib.suppress(OSError):
            self._link.sendall(json.dumps(words).encode() + b"\n")

    def serve(self, order: dict[str, Any]) -> dict[str, Any] | None:
        import select

        began = time.monotonic()
        first_path(order["argv"], order.get("path") or order["cwd"])
        load_hook(order.get("hook"))
        try:
            preload(order["preload"])
        except BaseException as error:
            traceback.print_exc()
            self.say(failed=f"{type(error).__name__}: {error}")
            return None
        self._files = imported_files()
        self.say(ready=True, took_s=time.monotonic() - began, files=len(self._files))
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        rest = b""
        while True:
            watched: list[Any] = [self._link, self._wake]
            ready, _, _ = select.select(watched, [], [])
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
                self._reap()
            if self._link in ready:
                data = self._link.recv(1 << 20)
                if not data:
                    return None  # the agent is gone; the ranks are not this process's to end
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    told = self._fork(json.loads(line))
                    if told is not None:
                        return told

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.say(pid=pid, status=status)

    def _fork(self, order: dict[str, Any]) -> dict[str, Any] | None:
        if order.get("check"):
            self._check()
            return None
        why = unsafe()
        if why:
            self.say(unsafe=why, rank=order["rank"])
            return None
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            self.say(rank=order["rank"], pid=pid)
            return None
        signal.set_wakeup_fd(-1)
        os.setsid()
        self._link.close()
        os.close(self._wake)
        os.close(self._wake_write)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        return order

    def _check(self) -> None:
        """Look in a child whether imported files changed: their storage may hang."""
        pid = os.fork()
        if pid:
            return  # its answer comes from the child itself
        path = changed(self._files)
        self.say(checked=True, changed=path)
        os._exit(0)


def main() -> None:
    if sys.argv[1] == "rank":
        with open(sys.argv[2]) as file:
            order = json.load(file)
        cold(order)
        return
    with open(sys.argv[3]) as file:
        setup = json.load(file)
    order = Server(int(sys.argv[2])).serve(setup)
    if order is None:
        return
    os.chdir(order["cwd"])
    refresh(order)
    become(order)
    as_main(order["argv"])


if __name__ == "__main__":
    sys.modules["superv_starter"] = sys.modules["__main__"]
    main()
