"""A first job.yaml, with what its keys mean: the text that `superv init` writes."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

KINDS = {
    "torchtitan": "TorchTitan",
    "ddp": "plain PyTorch, a script (DDP, FSDP, …)",
    "command": "a command that is run once for each rank",
}
# How a trainer is told where to save and what to resume.
HANDOFFS = ("none", "env", "args")
_PLAIN = re.compile(r"[A-Za-z0-9_./~][A-Za-z0-9_./~@%+=-]*")
_NOT_TEXT = re.compile(r"(?i)y|n|yes|no|on|off|true|false|null|~|[-+.\d_]+(e[-+]?\d+)?|0[xob].*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What is known of a job that is to be written down."""

    name: str
    kind: str  # one of KINDS
    nodes: int
    spares: int
    ranks: int
    program: Sequence[str]  # module, script, or the words of the command
    args: Sequence[str] = ()
    python: str = "python3"
    slurm: Mapping[str, str] | None = None  # None: on this machine alone
    notes: Mapping[str, str] = field(default_factory=dict)  # by key: what is said beside it
    save_dir: str = ""
    handoff: str = "none"  # one of HANDOFFS; a hook needs none


def text(draft: Draft, file: Path) -> str:
    """The whole file, which is to be called so."""
    parts = [_head(draft, file), _nodes(draft), _trainer(draft), _checkpoints(draft)]
    if draft.kind != "torchtitan":  # its hook knows its lines
        parts.append(_STEPS)
    return "\n".join(part for part in parts if part)


def scalar(value: str) -> str:
    """A value as YAML takes it for this very text."""
    if _PLAIN.fullmatch(value) and not _NOT_TEXT.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)


def words(values: Sequence[str]) -> str:
    return f"[{', '.join(scalar(value) for value in values)}]"


def _line(draft: Draft, key: str, value: str, indent: int = 0) -> str:
    note = draft.notes.get(key, "")
    return f"{' ' * indent}{key}: {value}" + (f" # {note}" if note else "")


def _head(draft: Draft, path: Path) -> str:
    file = shlex.quote(str(path))
    return f"""\
# A job of superv: {KINDS[draft.kind]}. docs/configuration.md explains every key.
#   superv doctor {file}             what is in order here, and what is not
#   superv launch --dry-run {file}   what would be submitted and run
#   superv launch {file}             Ctrl-C detaches; `superv stop {draft.name}` ends it
name: {scalar(draft.name)} # one run of a name is alive at a time
"""


def _nodes(draft: Draft) -> str:
    lines = [
        _line(draft, "nodes", str(draft.nodes)),
        _line(draft, "spares", str(draft.spares)),
    ]
    if draft.slurm is None:
        note = "launcher: local # nodes are processes of this machine; for Slurm remove this line"
        return "\n".join([*lines, note, ""])
    if not draft.slurm:
        lines += ["", "# slurm: {partition: train, account: llm, time: 1-00:00:00}", ""]
        return "\n".join(lines)
    lines += ["", "slurm: # long options of sbatch"]
    lines += [_line(draft, name, scalar(value), 2) for name, value in draft.slurm.items()]
    return "\n".join([*lines, ""])


def _trainer(draft: Draft) -> str:
    key = {"torchtitan": "module", "ddp": "script", "command": "command"}[draft.kind]
    value = words(draft.program) if key == "command" else scalar(draft.program[0])
    lines = ["trainer:", _line(draft, key, value, 2)]
    if draft.args:
        lines.append(_line(draft, "args", words(draft.args), 2))
    if key != "command":
        lines.append(_line(draft, "python", scalar(draft.python), 2))
    lines.append(_line(draft, "ranks_per_node", str(draft.ranks), 2))
    if draft.kind == "torchtitan":
        lines.append("  hook: torchtitan # sets its checkpoint fields, follows steps and phases")
    lines.append("  # env: {NCCL_DEBUG: WARN, HF_TOKEN: {secret: ~/.hf-token}}")
    return "\n".join([*lines, ""])


def _checkpoints(draft: Draft) -> str:
    if draft.save_dir:
        lines = ["checkpoints:", _line(draft, "dir", scalar(draft.save_dir), 2)]
        if draft.handoff == "env":
            lines.append("  handoff: env # it reads SUPERV_SAVE_DIR and SUPERV_RESUME_PATH")
        return "\n".join([*lines, ""])
    return """\
# Without checkpoints every restart begins at step 0. With them the trainer is told where to save
# and what to resume: by SUPERV_SAVE_DIR, SUPERV_RESUME_PATH and SUPERV_RESUME_STEP, or by
# {save_dir}, {resume_path} and {resume_step} in its args. It saves PyTorch's distributed
# checkpoints as step-N; examples/ddp/train.py shows how.
# checkpoints:
#   dir: checkpoint
#   handoff: env
"""


_STEPS = """\
# Steps are found in lines like `step 5 loss 1.2`; for others give a pattern:
# progress: {step: 'batch (?P<step>\\d+) done', resumed: 'starting after batch (?P<step>\\d+)'}
"""
