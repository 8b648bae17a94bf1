#!/usr/bin/python3
"""Stands in for enroot, apptainer and pyxis' srun: called by one of these names.

It takes the options that their documentation gives (enroot: doc/cmd/start.md; apptainer-exec(1);
pyxis: README and srun --help), refuses all others, and runs the command in a mount namespace of
its own: /usr and /etc are the machine's, an image is a folder of whatever else is in it, and
nothing but what was asked for is mounted. How each treats the environment, its process and exit
codes is as documented, or as was seen of apptainer 1.4.5.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
NEWNS, BIND, REC, PRIVATE, REMOUNT, RDONLY = 0x20000, 4096, 16384, 1 << 18, 32, 1
IMAGE_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "FROM_IMAGE": "yes"}


def mount(source: str, target: Path, kind: str = "", flags: int = 0) -> None:
    done = LIBC.mount(source.encode(), str(target).encode(), kind.encode() or None, flags, None)
    if done != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), f"{source} on {target}")


def enter(image: str, binds: list[tuple[str, str, bool]]) -> None:
    """Become a process whose files are the image's, and what is mounted."""
    if LIBC.unshare(NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", Path("/"), flags=REC | PRIVATE)
    root = Path("/media")  # in this namespace alone: nothing is left behind
    mount("tmpfs", root, "tmpfs")
    for name in ("usr", "etc", "proc", "dev"):
        (root / name).mkdir()
        mount(f"/{name}", root / name, flags=BIND | REC)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "tmp").mkdir()
    for path in Path(image).iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    for source, to, read_only in binds:
        target = root / to.lstrip("/")
        if Path(source).is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        mount(source, target, flags=BIND | REC)
        if read_only:
            mount("none", target, flags=BIND | REMOUNT | RDONLY)
    os.chroot(root)
    os.chdir("/")


def as_child(image: str, binds: list[tuple[str, str, bool]], argv: list[str], env: dict[str, str]):
    """Run the command below this process, which hands signals on and ends as it ends."""
    child = os.fork()
    if child == 0:
        enter(image, binds)
        os.execvpe(argv[0], argv, env)
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        signal.signal(number, lambda number, _: os.kill(child, number))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def enroot(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="enroot", allow_abbrev=False)
    parser.add_argument("do", choices=("start",))
    parser.add_argument("-e", "--env", action="append", default=[])
    parser.add_argument("-m", "--mount", action="append", default=[])
    for short, long in (("-w", "--rw"), ("-r", "--root")):
        parser.add_argument(short, long, action="store_true")
    end = words.index("--")
    given, (image, *argv) = parser.parse_args(words[:end]), words[end + 1 :]
    binds = []
    for source, to, kind, options in (one.split(":") for one in given.mount):
        assert kind == "none" and "x-create=auto" in options and "bind" in options
        binds.append((source, to, "ro" in options.split(",")))
    env = dict(IMAGE_ENV)
    for one in given.env:
        name, equals, value = one.partition("=")
        env[name] = value if equals else os.environ[name]
    enter(image, binds)
    os.execvpe(argv[0], argv, env)


def apptainer(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="apptainer", allow_abbrev=False)
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("do", choices=("exec",))
    for name in ("--cleanenv", "--no-home", "--nv", "--rocm"):
        parser.add_argument(name, action="store_true")
    parser.add_argument("-B", "--bind", action="append", default=[])
    parser.add_argument("image")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(words)
    binds = []
    for one in ",".join(given.bind).split(","):
        source, to, options = one.split(":")
        binds.append((source, to, options == "ro"))
    env = dict(IMAGE_ENV) if given.cleanenv else {**os.environ, **IMAGE_ENV}
    code = as_child(given.image, binds, given.command, env)
    if code < 0:  # it ends by the same signal
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    sys.exit(code)


def srun(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="srun", allow_abbrev=False)
    for name in ("jobid", "nodelist", "nodes", "ntasks", "cpu-bind", "mem", "mpi", "wait"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("export", "input", "propagate", "container-image", "container-mounts"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("overlap", "unbuffered", "quiet"):
        parser.add_argument(f"--{name}", action="store_true")
    for name in ("no-container-mount-home", "no-container-entrypoint"):
        parser.add_argument(f"--{name}", action="store_true", required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(words)
    binds = []
    for one in given.container_mounts.split(","):
        source, to, *flags = one.split(":")
        binds.append((source, to, flags == ["ro"]))
    env = {**os.environ, **IMAGE_ENV}
    code = as_child(given.container_image, binds, given.command, env)
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    if sys.argv[1:] in (["version"], ["--version"]):
        print("stand-in 1.0")
        sys.exit()
    {"enroot": enroot, "apptainer": apptainer, "srun": srun}[Path(sys.argv[0]).name](sys.argv[1:])
