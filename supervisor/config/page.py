"""docs/configuration.md, made from the types by `python docs/make.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from supervisor.config.container import ContainerOf
from supervisor.config.job import Checkpoints, Job
from supervisor.config.nccl import Nccl
from supervisor.config.preflight import Preflight
from supervisor.config.renamed import RENAMED
from supervisor.config.schema import Key, describe, keys
from supervisor.config.site import DrainRule, PortRange, PortRoles, Site, Ssh
from supervisor.config.slurm import OPTIONS, OWNED
from supervisor.config.torchx import Torchx
from supervisor.config.trainer import NAMED_PROGRESS, ProgressPatterns, Trainer
from supervisor.core.policy import Policy
from supervisor.core.rank_contract import PLACEHOLDERS

_HEAD = """\
# Configuration

<!-- Made by `python docs/make.py`; don't edit. -->

A run is described by one YAML file, by custom `job.yaml`; the cluster by `site.yaml`. Every key
that exists is listed here. An unknown key is an error, and so is one that is given twice. A renamed
key works under its old name until the next release, with a note at launch. YAML aliases, merge keys
and tags are not supported. `examples/` holds a file of each kind.

Text is taken as it is written: `time: 12:00:00` and `partition: no` need no quotes. A text that
begins with `{` does: `"{save_dir}"`. A relative path starts at the folder of the file that it is
written in, `~` is expanded on the machine where `superv` runs, and variables are not expanded.
"""
_SITE = """\
Read from `/etc/superv/site.yaml`, then `$XDG_CONFIG_HOME/superv/site.yaml` (without that variable
`~/.config/superv/site.yaml`), then the file that `$SUPERV_SITE` names. Later files win, key by key.
All keys are optional, and so are the files, except one that `$SUPERV_SITE` names. What Slurm runs
on a node (`superv prolog`, `superv healthcheck`) reads `/etc/superv/site.yaml` alone, and root
reads no file that another user could have changed.
"""
_PORTS = (
    "Lists of devices (`mlx5_0`, `mlx5_[0-7]`), PCI addresses or boards (`MT_0000000838`, as\n"
    "`board_id` in /sys has it). The first role that names a port counts. Without a word the\n"
    "fabric is InfiniBand, else what most ports are, and the fastest of those; of the rest a slow\n"
    "port with the default route is for management. Ports of the fabric's own kind that NFS goes\n"
    "through are storage. A port that goes down stays what it was.\n"
)
_DRAIN = "`on`, `off`, or a mapping of these; [fleet.md](fleet.md#drains) has the rules.\n"
_PLACEHOLDERS = """\
In `trainer.args`, `trainer.command` and the values of `trainer.env` these are replaced for every
rank; all other braces stay as they are.
"""


def page() -> str:
    """The whole page, as Markdown."""
    parts = [_HEAD, "## job.yaml\n", _keys(Job)]
    parts += ["### torchx\n", _keys(Torchx), "### slurm\n", "Passed on to sbatch:\n"]
    parts += [_table(("option", "for"), [(f"`{name}`", text) for name, text in OPTIONS.items()])]
    parts += ["Refused, because superv needs them or does better:\n"]
    parts += [_table(("option", "instead"), [(f"`{name}`", why) for name, why in OWNED.items()])]
    parts += ["### trainer\n", "Exactly one of `module`, `script` and `command`.\n"]
    parts += [_keys(Trainer), "#### Placeholders\n", _PLACEHOLDERS]
    rows = [(f"`{{{name}}}`", p.doc) for name, p in PLACEHOLDERS.items()]
    parts += [_table(("placeholder", "stands for"), rows)]
    parts += ["### container\n", _keys(ContainerOf)]
    parts += ["### progress\n", "One of these names, or a mapping of one's own patterns.\n"]
    named = [
        (f"`{name}`", _code(p.step), _code(p.resumed or ""))
        for name, p in NAMED_PROGRESS.items()
        if name != "plain"
    ]
    named.insert(0, ("`plain`", *_PLAIN))
    parts += [_table(("name", "step", "resumed"), named), _keys(ProgressPatterns), _STEPS]
    parts += [
        "### checkpoints\n",
        _keys(Checkpoints),
        "### nccl\n",
        _keys(Nccl),
        "### preflight\n",
        _keys(Preflight),
    ]
    parts += ["### policy\n", _keys(Policy)]
    parts += ["## site.yaml\n", _SITE, _keys(Site)]
    parts += ["### drain\n", _DRAIN, _keys(DrainRule), "### ports\n", _PORTS, _keys(PortRoles)]
    parts += ["### ssh\n", _keys(Ssh)]
    return "\n".join(parts)


_PLAIN = (
    "common wordings: `step: 5`, `step 5/100`, `iter 5`, `it 5`, `global_step=5`, `step 1,234`, "
    "with `loss 1.2`, `loss: 1.2`, `loss=1.2` behind it; no times (`step time 5 s`), and no steps "
    "of validation, warm-up, saves or limits",
    "`resumed from step 5`, `resuming training at step 5`, `Training starts at step 6`",
)
_STEPS = """\
Numbers that do not follow from those before are set aside until the next one of the rank follows
them; one that is far from the run's step needs most of the ranks that tell steps. What hooks tell
goes before lines.
Steps may be counted from 0, or in each epoch from its beginning. Where no step is understood a
minute after the first lines, `superv status` says so, with a line and the pattern that would fit; a
new verified checkpoint is progress all the same.
"""


def _keys(cls: type) -> str:
    rows = []
    before = {new: old for old, new in RENAMED.get(cls.__name__, {}).items()}
    for key in keys(cls).values():
        valid = describe(key.hint, key.about)
        was = f" (Before: `{before[key.name]}`.)" if key.name in before else ""
        rows.append((f"`{key.name}`", valid, _default(key), key.about.doc + was))
    return _table(("key", "valid", "default", "meaning"), rows)


def _default(key: Key) -> str:
    if key.required:
        return "**required**"
    if key.about.default:
        return key.about.default
    field = key.field
    value: Any = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is None or (isinstance(value, Mapping | tuple) and not value):
        return "none"
    if dataclasses.is_dataclass(value) and not isinstance(value, PortRange):
        return "see below"
    if isinstance(value, tuple):
        return "`[" + ", ".join(v if isinstance(v, str) else f"{v:g}" for v in value) + "]`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    assert isinstance(value, str | int | Path | PortRange), value
    return f"`{value}`"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )
