"""The command that starts a rank inside a container, for each of the runtimes.

Options are those of the runtimes' own documentation: enroot's doc/cmd/start.md (4.0), pyxis' README
and `srun --help` (0.20), apptainer-exec(1) (1.4).

The environment of a rank travels in a file, which its shell in the container reads and removes:
values stay out of command lines, and mean the same with every runtime. Nothing but what superv and
the job file say comes from the host: PATH and libraries are the image's.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

# Runs in the container: the environment's file, the working directory, then the rank's command.
ENTER = '. "$1"; rm -f -- "$1"; cd -- "$2" || exit 125; shift 2; exec "$@"'
# What separates fields of mounts, in one runtime or another, and what a shell could trip over.
PATH = re.compile(r"/[^:,\s\\$\"'{}\0]*")
NVIDIA, AMD = "nvidia", "amd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A folder or file of the node in the container."""

    path: str
    to: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """What ranks run in."""

    runtime: str
    image: str
    mounts: tuple[Mount, ...] = ()  # the user's, and those that superv's own paths need
    workdir: str  # in the container


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPlace:
    """Where a container is started."""

    node: str
    job_id: str
    folder: str  # the agent's own on the node: hook, logs and the copy of the code lie there
    gpus: str = ""  # nvidia, amd or nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One way to start containers."""

    program: str  # is in PATH on the nodes
    argv: Callable[[Container, ContainerPlace], list[str]]  # up to the command
    # Variables of its own process, which other users can't read.
    env: Mapping[str, str]
    keeps_descriptors: bool = True  # so a process in the container can be told what to fork
    signal_as_code: bool = False  # it ends with 128 + N where its command was ended by a signal


def _mounts(container: Container, place: ContainerPlace) -> tuple[Mount, ...]:
    own = Mount(path=place.folder, to=place.folder)
    return (*container.mounts, own)


def _enroot(container: Container, place: ContainerPlace) -> list[str]:
    argv = ["enroot", "start"]
    for mount in _mounts(container, place):
        options = f"x-create=auto,rbind,{'ro' if mount.read_only else 'rw'}"
        argv += ["--mount", f"{mount.path}:{mount.to}:none:{options}"]
    if place.gpus == NVIDIA:  # what enroot's hooks for GPUs and InfiniBand go by
        argv += ["--env", "NVIDIA_VISIBLE_DEVICES=all", "--env", "MELLANOX_VISIBLE_DEVICES=all"]
    return [*argv, "--", container.image]


def _apptainer(container: Container, place: ContainerPlace) -> list[str]:
    argv = ["apptainer", "--quiet", "exec", "--cleanenv", "--no-home"]
    argv += {NVIDIA: ["--nv"], AMD: ["--rocm"]}.get(place.gpus, [])
    for mount in _mounts(container, place):
        argv += ["--bind", f"{mount.path}:{mount.to}:{'ro' if mount.read_only else 'rw'}"]
    return [*argv, container.image]


def _pyxis(container: Container, place: ContainerPlace) -> list[str]:
    mounts = [
        f"{mount.path}:{mount.to}" + (":ro" if mount.read_only else "")
        for mount in _mounts(container, place)
    ]
    return [
        *("srun", f"--jobid={place.job_id}", f"--nodelist={place.node}", "--nodes=1"),
        *("--ntasks=1", "--overlap", "--cpu-bind=none", "--mem=0", "--mpi=none", "--wait=0"),
        *("--export=ALL", "--input=none", "--unbuffered", "--quiet", "--propagate=NONE"),
        f"--container-image={container.image}",
        f"--container-mounts={','.join(mounts)}",
        *("--no-container-mount-home", "--no-container-entrypoint"),
    ]


RUNTIMES: Mapping[str, Runtime] = {
    "enroot": Runtime(program="enroot", argv=_enroot, env={}),
    "apptainer": Runtime(program="apptainer", argv=_apptainer, env={}),
    "pyxis": Runtime(
        program="srun",
        argv=_pyxis,
        env={"NVIDIA_VISIBLE_DEVICES": "all", "MELLANOX_VISIBLE_DEVICES": "all"},
        keeps_descriptors=False,
        signal_as_code=True,
    ),
}


def inside(
    container: Container, place: ContainerPlace, env_file: str, command: Iterable[str]
) -> list[str]:
    """The command line that runs another one in a container."""
    start = RUNTIMES[container.runtime].argv(container, place)
    enter = ["/bin/sh", "-c", ENTER, "superv-rank", env_file, container.workdir]
    return [*start, *enter, *command]


def environment_file(env: Mapping[str, str]) -> str:
    """The text that a shell reads variables from; every value arrives as it is."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in env.items())
