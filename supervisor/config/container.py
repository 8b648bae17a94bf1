"""The `container` of job.yaml: what ranks run in, while agents stay on the node."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from supervisor.config.document import At, YamlList, YamlMapping, YamlNode, YamlScalar, quoted
from supervisor.config.schema import read_fields, read_path
from supervisor.core import container as core
from supervisor.core.setting import about

_PATH_VALID = "an absolute path without blanks, commas, colons, quotes, braces and $"


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOf:
    """One of `container.mounts`, where it is more than a path."""

    path: Path = field(metadata=about("On the node.", valid=_PATH_VALID))
    to: str | None = field(
        default=None,
        metadata=about("In the container.", valid=_PATH_VALID, default="the same as path"),
    )
    read_only: bool = field(default=False, metadata=about("Ranks can't write there."))


def read_mounts(node: YamlNode, at: At) -> tuple[core.Mount, ...]:
    """A list of paths and mappings. Raises UserError."""
    if not isinstance(node, YamlList):
        raise at.error("expected a list of paths, or of {path, to, read_only}")
    found = []
    for index, item in enumerate(node.items):
        inner = At(file=at.file, line=item.line, key=f"{at.key}[{index}]", notes=at.notes)
        if isinstance(item, YamlMapping):
            one = MountOf(**read_fields(MountOf, item, inner))
        elif isinstance(item, YamlScalar) and item.kind != "null":
            one = MountOf(path=read_path(item.text, inner))
        else:
            raise inner.error("expected a path, or {path, to, read_only}")
        path, to = str(one.path), one.to or str(one.path)
        for text in (path, to):
            check_path(text, inner)
        found.append(core.Mount(path=path, to=to, read_only=one.read_only))
    return tuple(found)


def check_path(path: str, at: At) -> None:
    """Raises UserError for a path that no runtime could be told."""
    if not core.PATH.fullmatch(path):
        raise at.error(f"expected {_PATH_VALID}, got {quoted(path)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerOf:
    """The keys of `container`."""

    image: str = field(
        metadata=about(
            "An absolute path, or whatever the runtime takes for an image.",
            pattern=r"[A-Za-z0-9/][^\s\0]*",
            valid="a path or a name, without blanks",
        )
    )
    runtime: str = field(
        metadata=about(
            "enroot and apptainer are called by the agents; with pyxis they call srun.",
            choices=tuple(core.RUNTIMES),
        )
    )
    mounts: tuple[core.Mount, ...] = field(
        default=(),
        metadata=about(
            "Paths of the nodes that ranks see, each as it is or {path, to, read_only}. "
            "trainer.workdir, the script's folder, checkpoints.dir and the agent's folder are "
            "mounted by themselves, at their own paths.",
            valid="a list of paths, or of {path, to, read_only}",
            read=read_mounts,
        ),
    )
    workdir: str | None = field(
        default=None,
        metadata=about(
            "The ranks' working directory in the container.",
            pattern=r"/[^\0\n]*",
            valid="an absolute path",
            default="trainer.workdir",
        ),
    )
