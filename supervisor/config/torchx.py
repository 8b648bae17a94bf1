"""The `torchx` of job.yaml: which scheduler of TorchX starts the agents, with what arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from supervisor.config.document import At, YamlMapping, YamlNode, shown_key
from supervisor.config.schema import read_mapping
from supervisor.core.setting import about

# TorchX's scheduler → its run options (`torchx runopts`) that are superv's to set, and where the
# user writes them instead.
SCHEDULERS: dict[str, dict[str, str]] = {
    "local_cwd": {
        "log_dir": "superv sets it: TorchX's logs lie in the agents' folder",
    },
    "slurm": dict.fromkeys(
        ("partition", "time", "comment", "constraint", "mail-user", "mail-type"),
        "write it below `slurm:`",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Torchx:
    """What TorchX is asked for."""

    scheduler: str = field(
        metadata=about(
            "TorchX's scheduler. With `slurm`, the options below `slurm:` are those of the job; "
            "with `local_cwd` the nodes are processes of this machine.",
            choices=tuple(SCHEDULERS),
        )
    )
    args: Mapping[str, str] = field(
        default_factory=dict,
        metadata=about(
            "More arguments of that scheduler, as `torchx runopts` lists them.",
            valid="a mapping of text to text",
        ),
    )


def check_args(options: Torchx, node: YamlNode, at: At) -> None:
    """Raises UserError for an argument that superv sets, or that has a better place."""
    inner = node.entries.get("args") if isinstance(node, YamlMapping) else None
    if not isinstance(inner, YamlMapping):
        return
    for name in read_mapping(inner, at):
        if why := SCHEDULERS[options.scheduler].get(name):
            entry = inner.entries[name]
            raise at.inside("args", inner).inside(shown_key(name), entry).error(why)
