"""Ranks in containers, as an agent starts them; the agent itself stays on the node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from supervisor import proc
from supervisor.agent import tree
from supervisor.core.container import (
    AMD,
    NVIDIA,
    RUNTIMES,
    Container,
    ContainerPlace,
    environment_file,
    inside,
)
from supervisor.core.errors import TransientError
from supervisor.host import private

LOOK_S = 20.0  # storage that does not show image and mounts within this is taken to hang

# A folder for checkpoints has to be there before it can be mounted; all else has to be there.
_CHECK = """
[ -z "$1" ] || mkdir -p -- "$1" || exit 1
shift
for path; do [ -e "$path" ] || { echo "$path: no such file or directory" >&2; exit 1; }; done
"""


async def check(container: Container, home: str) -> None:
    """See in an expendable child that the image and all that is mounted are there.

    Raises TransientError.
    """
    paths = [container.image] if container.image.startswith("/") else []
    paths += [mount.path for mount in container.mounts]
    argv = ("/bin/sh", "-c", _CHECK, "sh", home, *paths)
    if proc.stuck(argv):
        raise TransientError("an earlier look at the container's image and mounts still hangs")
    done = await proc.run(argv, deadline_s=LOOK_S)
    if done.rc != 0:
        lines = done.err.strip().splitlines()
        raise TransientError(f"container: {lines[-1] if done.rc and lines else done.why()}")


def gpus(root: Path = Path("/")) -> str:
    """Whose GPUs the node has, by their devices."""
    if (root / "dev/nvidiactl").exists():
        return NVIDIA
    return AMD if (root / "dev/kfd").exists() else ""


def of_node(base: Mapping[str, str]) -> dict[str, str]:
    """Of an agent's variables those that mean something in a container: Slurm's."""
    return {name: value for name, value in base.items() if name.startswith("SLURM")}


def wrapped(
    container: Container,
    argv: list[str],
    env: Mapping[str, str],
    env_file: Path,
    base: Mapping[str, str],
    node: str,
    folder: Path,
) -> tuple[list[str], dict[str, str]]:
    """A command in its container, and the environment of the runtime's own process.

    Its own environment goes through a file of mode 0600, which its shell removes. Raises OSError.
    """
    private.write(env_file, environment_file(env).encode())
    place = ContainerPlace(
        node=node,
        job_id=base.get("SLURM_JOB_ID", ""),
        folder=str(folder),
        gpus=gpus(),
    )
    own = {**RUNTIMES[container.runtime].env, **base, tree.MARK: env[tree.MARK]}
    return inside(container, place, str(env_file), argv), own


def signal_of(container: Container | None, code: int | None) -> int | None:
    """The signal behind an exit code, where the runtime tells it so; None: there is none."""
    if container is None or code is None or not RUNTIMES[container.runtime].signal_as_code:
        return None
    return code - 128 if 128 < code < 128 + 65 else None
