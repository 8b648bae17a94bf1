"""The warm starter and the first lines of every hooked rank: runs in the trainer's own Python.

Standard library only, and nothing of superv is imported: the agent writes a copy of this file to
node-local disk and runs it there with the trainer's interpreter.

    starter.py serve FD ORDER     import what is to be preloaded, then fork ranks as ordered on FD
    starter.py rank ORDER         be one rank, without a preloaded parent

ORDER is a JSON file: {argv, env, cwd, path, log, rank, ranks, hook, state, notify_socket,
stacks, promised, cgroup}, in a container drop too;
for `serve` {argv, cwd, path, preload, hook, quiet_s, stays}. `argv` is what follows `python` on a
command line: "-m", MODULE, … or SCRIPT, ….

On FD the agent sends orders, a JSON line each; the starter answers with lines: {"serving"},
{"ready", "took_s", "files"}, {"failed"}, {"rank", "pid"}, {"unsafe"}, {"waiting"}, {"pid",
"status"}. When the agent's end closes, the starter ends, and with it what waits for an order; its
ranks go on. In a container it stays until they have ended.
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
import types
from collections.abc import Callable
from typing import Any

PHASES = ("import", "build", "load", "step", "save", "done")
# magic, phase, step, resumed step, time of the last change, first time of each phase, first step's
STATE = struct.Struct("=4sIqqd6dd")
# behind it: the span that it is in, where its trainer tells; what is amiss with the hook; the step
# that training ends with (0: nothing is known)
MORE = struct.Struct("=40s240sq")
MAGIC = b"SVR1"
STACKS_SIGNAL = signal.SIGRTMIN + 6  # asks a rank for its stacks; trainers and NCCL use USR1, USR2


class HookRank:
    """What a hook says of its rank: to shared memory, with a datagram that says so.

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
        self._detail = self._trouble = b""
        self._target = 0
        self._bell, self._state = order.get("notify_socket", ""), order.get("state", "")
        self._folder = -1
        self._notify_path = ""
        self._notify_socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify_socket.setblocking(False)
        self._memory: mmap.mmap | None = None
        self._open()
        self.phase("import")

    def _open(self) -> None:
        """Map the state file, and find the bell by its folder: a socket's path has 107 bytes."""
        if self._state:
            fd = os.open(self._state, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.ftruncate(fd, STATE.size + MORE.size)
            self._memory = mmap.mmap(fd, STATE.size + MORE.size)
            os.close(fd)
            self._write_more()
        if self._bell:
            folder, name = os.path.split(self._bell)
            found = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            if self._folder >= 0:
                os.close(self._folder)
            self._folder = found
            self._notify_path = f"/proc/self/fd/{found}/{name}"

    def phase(self, name: str) -> None:
        """Enter a phase."""
        self._phase = PHASES.index(name)
        if not self._first[self._phase]:
            self._first[self._phase] = time.time()
        self._publish()

    def begin(self, step: int) -> None:
        """A step begins. The first one must be the one after the promised checkpoint's."""
        if self.resumed < 0:
            self.resumed = step - 1
            if self.promised is not None and self.resumed != self.promised:
                self._publish()
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
        self._publish()

    def detail(self, span: str) -> None:
        """What it is at within its phase; empty: nothing is known. Nobody is woken for it."""
        self._detail = span.encode()
        self._write_more()

    def until(self, step: int) -> None:
        """Training ends with this step, as its configuration says. Nobody is woken for it."""
        self._target = max(0, min(step, (1 << 53) - 1))
        self._write_more()

    def say(self, text: str) -> None:
        """A line in the rank's log."""
        sys.stderr.write(f"superv: {text}\n")
        sys.stderr.flush()

    def trouble(self, text: str) -> None:
        """Something is amiss with the hook: in the log, and told to the agent, the first alone."""
        self.say(text)
        if not self._trouble:
            self._trouble = text.encode()
            self._write_more()
            self._publish()

    def _write_more(self) -> None:
        if self._memory is not None:
            self._memory[STATE.size :] = MORE.pack(self._detail, self._trouble, self._target)

    def _publish(self) -> None:
        self._write()
        try:
            self._ring()
        except FileNotFoundError:  # a cleaner took the folder: the agent makes another one
            with contextlib.suppress(OSError):
                self._open()
                self._write()
                self._ring()
        except OSError:  # no agent now, or it is behind: the next one counts
            pass

    def _write(self) -> None:
        if self._memory is not None:
            self._memory[: STATE.size] = STATE.pack(
                MAGIC,
                self._phase,
                self.step,
                self.resumed,
                time.time(),
                *self._first,
                self._first_step,
            )

    def _ring(self) -> None:
        if self._notify_path:
            self._notify_socket.sendto(b"%d" % self.number, self._notify_path)


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


current: HookRank | None = None  # of this process; hooks reach it through `rank()`


def rank() -> HookRank | None:
    return current


def load_hook(path: str | None) -> None:
    """Run a hook's `install(rank)`; its patches wait for the trainer's modules."""
    if not path:
        return
    with open(path, "rb") as source:  # not by import: that leaves compiled code beside it
        code = compile(source.read(), path, "exec")
    hook = types.ModuleType("superv_hook")
    hook.__file__ = path
    exec(code, hook.__dict__)  # noqa: S102 - superv's own file, in a folder of ours alone
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


def become_rank(order: dict[str, Any]) -> None:
    """This process is a rank from here on."""
    global current
    import faulthandler

    faulthandler.enable()
    if order.get("stacks"):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        out = os.open(order["stacks"], flags, 0o600)  # stays open for the handler
        faulthandler.register(STACKS_SIGNAL, file=out, all_threads=True, chain=False)
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        name = b"rank%d" % order["rank"] if "rank" in order else b"next rank"
        libc.prctl(15, name, 0, 0, 0)  # PR_SET_NAME
        libc.prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER, any: for py-spy
    if "argv" in order:
        show_as([sys.executable, *order["argv"]])
    current = HookRank(order)


def show_as(argv: list[str]) -> None:
    """Let ps show the trainer's command line where the starter's own stands: as much as fits there.

    Nothing happens where the kernel does not say where that is (proc(5), stat: arg_start, arg_end).
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/stat", "rb") as stat, open("/proc/self/cmdline", "rb") as line:
            fields, shown = stat.read().rpartition(b")")[2].split(), line.read()
        start, end = int(fields[45]), int(fields[46])
        room = end - start
        if start == 0 or room != len(shown) or ctypes.string_at(start, room) != shown:
            return
        words = b"\0".join(os.fsencode(word) for word in argv)[: room - 1]
        ctypes.memmove(start, words.ljust(room, b"\0"), room)


def run_cold(order: dict[str, Any]) -> None:
    first_path(order["argv"], order.get("path") or order["cwd"])
    become_rank(order)
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
    """Path, size and mtime of every module's file, to see later whether one changed.

    Not this file: the agent writes it, and again where a cleaner took it.
    """
    found: dict[str, tuple[int, int]] = {}
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and path not in found and path != __file__:
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


def reset_signals_and_logging() -> None:
    """Make a forked process what a new interpreter would be, as far as that needs no order."""
    import logging

    for number in range(1, signal.NSIG):
        with contextlib.suppress(OSError, ValueError):
            if signal.getsignal(number) not in (signal.SIG_DFL, None):
                signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    logging.root.handlers[:] = []
    logging.root.setLevel(logging.WARNING)


def prefault() -> None:
    """Do what a rank does first: the pages that it writes to are copied now, not when it is late.

    A stdlib trainer's rank has 1.0 ms left to its first line, of 3.5 ms (2 virtual cores, 2026-11).
    """
    import runpy

    replace_environ(json.loads(json.dumps(dict(os.environ))))
    become_rank({})
    runpy.run_path(os.devnull)


def replace_environ(env: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(env)


def apply_order(order: dict[str, Any]) -> None:
    """Give a forked process what is a rank's own: directory, environment, randomness, threads."""
    import random

    os.chdir(order["cwd"])
    env = order["env"]
    if "drop" in order:  # in a container: over the image's variables
        env = {n: v for n, v in os.environ.items() if n not in order["drop"]} | env
    replace_environ(env)
    random.seed()
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        numpy.random.seed()
    if torch is not None:
        torch.manual_seed(torch.default_generator.initial_seed())
        if os.environ.get("OMP_NUM_THREADS", "").isdigit():
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def start_session(order: dict[str, Any]) -> dict[str, Any]:
    """Leave the starter's session and cgroup, and write to the rank's log."""
    os.setsid()
    if order.get("cgroup"):
        with contextlib.suppress(OSError), open(order["cgroup"], "w") as group:
            group.write("0")  # this process
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    return order


class StarterServer:
    """Forks ranks. `serve` returns only in a forked rank, with its order."""

    def __init__(self, fd: int) -> None:
        self._link = socket.socket(fileno=fd)
        self._files: dict[str, tuple[int, int]] = {}
        self._quiet_s = 0.0
        self._waiting: list[tuple[int, int]] = []  # forked ahead: pid, where its order goes
        self._wanted = 0  # how many of them there should be
        self._wake, self._wake_write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._wake_write, False)

    def send(self, **message: Any) -> None:
        with contextlib.suppress(OSError):
            self._link.sendall(json.dumps(message).encode() + b"\n")

    def serve(self, order: dict[str, Any]) -> dict[str, Any] | None:
        import select

        began = time.monotonic()
        self.send(serving=os.getpid())
        self._quiet_s = order["quiet_s"]
        first_path(order["argv"], order.get("path") or order["cwd"])
        load_hook(order.get("hook"))
        try:
            preload(order["preload"])
        except BaseException as error:
            traceback.print_exc()
            self.send(failed=f"{type(error).__name__}: {error}")
            return None
        self._files = imported_files()
        self.send(ready=True, took_s=time.monotonic() - began, files=len(self._files))
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        rest, quiet_s = b"", self._quiet_s
        while True:
            watched: list[Any] = [self._link, self._wake]
            ahead = len(self._waiting) < self._wanted
            ready, _, _ = select.select(watched, [], [], quiet_s if ahead else None)
            # One at a time, so that whoever ends or asks in between is served at once.
            quiet_s = self._quiet_s if ready else self._quiet_s / 32
            if not ready and (forked := self._prefork()) is not None:
                return forked
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
                self._reap()
            if self._link in ready:
                data = self._link.recv(1 << 20)
                if not data:  # the agent is gone; the ranks are not this process's to end
                    if order.get("stays"):
                        self._outlive()
                    return None
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    forked = self._handle(line)
                    if forked is not None:
                        return forked

    def _outlive(self) -> None:
        """Stay as long as ranks do: with this process a container may lose its files."""
        while self._waiting:
            os.close(self._waiting.pop()[1])
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.send(pid=pid, status=status)
            for one in [one for one in self._waiting if one[0] == pid]:
                self._waiting.remove(one)
                os.close(one[1])
                self._wanted = 0  # whatever it was, it may befall the next one, too

    def _handle(self, line: bytes) -> dict[str, Any] | None:
        order = json.loads(line)
        if order.get("check"):
            self._check_files()
            return None
        self._wanted = order["ranks"]
        if self._pass_on(order["rank"], line):
            return None
        why = unsafe()
        if why:
            self.send(unsafe=why, rank=order["rank"])
            return None
        pid = self._fork()
        if pid:
            self.send(rank=order["rank"], pid=pid)
            return None
        reset_signals_and_logging()
        return start_session(order)

    def _pass_on(self, rank: int, line: bytes) -> bool:
        """Give an order to a process that waits for one; False where none is left."""
        while self._waiting:
            pid, pipe = self._waiting.pop()
            try:
                with open(pipe, "wb") as file:
                    file.write(line)
            except OSError:  # it has ended
                continue
            self.send(rank=rank, pid=pid)
            return True
        return False

    def _prefork(self) -> dict[str, Any] | None:
        """Fork a rank of the next attempt while nobody waits for it; returns in it with its order.

        It ends with the starter: nobody else has the other end of its pipe.
        """
        if unsafe():
            self._wanted = 0
            return None
        theirs, ours = os.pipe()
        pid = self._fork()
        if pid:
            os.close(theirs)
            self._waiting.append((pid, ours))
            self.send(waiting=pid)
            return None
        os.close(ours)
        reset_signals_and_logging()
        prefault()
        with open(theirs, "rb") as file:
            line = file.read()
        if not line:
            os._exit(0)
        return start_session(json.loads(line))

    def _fork(self) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            self._link.close()
            for fd in (self._wake, self._wake_write, *(pipe for _, pipe in self._waiting)):
                os.close(fd)
        return pid

    def _check_files(self) -> None:
        """Look in a child whether imported files changed: their storage may hang."""
        pid = os.fork()
        if pid:
            return  # its answer comes from the child itself
        path = changed(self._files)
        self.send(checked=True, changed=path)
        os._exit(0)


def main() -> None:
    if sys.argv[1] == "rank":
        with open(sys.argv[2]) as file:
            order = json.load(file)
        run_cold(order)
        return
    with open(sys.argv[3]) as file:
        setup = json.load(file)
    order = StarterServer(int(sys.argv[2])).serve(setup)
    if order is None:
        return
    apply_order(order)
    become_rank(order)
    as_main(order["argv"])


if __name__ == "__main__":
    sys.modules["superv_starter"] = sys.modules["__main__"]
    main()
