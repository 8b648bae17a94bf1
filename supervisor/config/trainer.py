"""The `trainer` and `progress` of job.yaml: what a rank runs, and what its log lines mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from supervisor.config.document import At, Node, Scalar, Table, printable, quoted, shown
from supervisor.config.schema import did_you_mean, read_fields, read_mapping, read_path
from supervisor.core.setting import about

PLACEHOLDERS = {
    "node_rank": "the node's slot, from 0",
    "nnodes": "number of slots",
    "master_addr": "the address of slot 0's node",
    "master_port": "a port that is free there, another one for each attempt",
    "save_dir": "the directory that this attempt saves into; it does not exist yet",
    "resume_path": "the verified checkpoint to load; empty when the attempt begins at step 0",
    "resume_step": "the step of that checkpoint; 0 when the attempt begins there",
}
RESUME_PLACEHOLDERS = ("resume_path", "resume_step")

TORCHTITAN_PRELOAD = ("torch", "torchtitan.train")

# torchrun's contract with a rank (torch 2.13, distributed/elastic/agent/server/local_elastic_agent)
_OWN_VARIABLES = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
}
_OWN_PREFIXES = ("SUPERV_", "TORCHELASTIC_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Patterns (Python's `re`, searched in each line without its colour codes)."""

    step: str = field(
        metadata=about(
            "A line that reports a finished step: group `step`, and group `loss` where it has one.",
            valid="a regular expression with a group (?P<step>…)",
        )
    )
    resumed: str | None = field(
        default=None,
        metadata=about(
            "The line that says where training starts: group `step` is the step of the loaded "
            "checkpoint (0: none), group `next` the first step to be trained; one of them matches. "
            "Needed with `checkpoints`: a run that comes back at another step is HELD.",
            valid="a regular expression with a group (?P<step>…) or (?P<next>…)",
        ),
    )


NAMED_PROGRESS = {
    "plain": Progress(
        step=r"\b[Ss]tep\s*[:=]\s*(?P<step>\d+)\b(?:.*?\b[Ll]oss\s*[:=]\s*(?P<loss>[-+.\w]+))?",
        resumed=r"\b(?:[Rr]esum(?:ed|ing) (?:at|from) step (?P<step>\d+)"
        r"|[Tt]raining starts at step (?P<next>\d+))\b",
    ),
    # torchtitan 0.2.2, components/metrics.py and train.py; " - " keeps "validate step:" out
    "torchtitan": Progress(
        step=r" - step:\s*(?P<step>\d+)\s+loss:\s*(?P<loss>\S+)",
        resumed=r"Training starts at step (?P<next>\d+)",
    ),
}


def read_progress(node: Node, at: At) -> Progress:
    """A named pair of patterns, or the user's own. Raises UserError."""
    names = tuple(sorted(NAMED_PROGRESS))
    if isinstance(node, Scalar) and node.kind != "null":
        if node.text not in NAMED_PROGRESS:
            guess = did_you_mean(node.text, names)
            valid = f"one of {', '.join(names)}, or a mapping with step and resumed"
            raise at.error(f"expected {valid}, got {shown(node)}{guess}")
        return NAMED_PROGRESS[node.text]
    progress = Progress(**read_fields(Progress, node, at))
    assert isinstance(node, Table)
    _check_pattern(
        progress.step, ("step",), ("step", "loss"), at.inside("step", node.entries["step"])
    )
    if progress.resumed is not None:
        inner = at.inside("resumed", node.entries["resumed"])
        _check_pattern(progress.resumed, ("step", "next"), ("step", "next"), inner)
    return progress


def _check_pattern(pattern: str, needed: tuple[str, ...], valid: tuple[str, ...], at: At) -> None:
    """It compiles, has one of the needed groups, and no named group without a meaning."""
    try:
        groups = set(re.compile(pattern).groupindex)
    except (re.error, OverflowError, RecursionError) as error:
        raise at.error(f"not a regular expression: {' '.join(str(error).split())}") from error
    if not groups.intersection(needed):
        raise at.error("needs a group " + " or ".join(f"(?P<{name}>…)" for name in needed))
    for name in sorted(groups.difference(valid)):
        raise at.error(f"the group {printable(name)} has no meaning; valid: {', '.join(valid)}")


def read_env(node: Node, at: At) -> dict[str, str]:
    """Variables for every rank. Raises UserError for names that superv sets."""
    values = read_mapping(node, at)
    assert isinstance(node, Table) or not values
    for name in values:
        inner = at.inside(printable(name), node.entries[name])  # type: ignore[union-attr]
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise inner.error("not a variable's name: letters, digits and _ only, no digit first")
        if name in _OWN_VARIABLES or name.startswith(_OWN_PREFIXES):
            raise inner.error("superv sets this variable for every rank; remove it")
    return values


def read_python(node: Node, at: At) -> str:
    """A command found on the nodes' PATH, or a path. Raises UserError."""
    if not isinstance(node, Scalar) or node.kind == "null" or not node.text.strip():
        raise at.error(f"expected a path or a command, got {shown(node)}")
    return str(read_path(node.text, at)) if "/" in node.text else node.text


def read_switch(node: Node, at: At) -> bool:
    """Raises UserError."""
    if not isinstance(node, Scalar) or node.text not in ("true", "false"):
        raise at.error(f"expected true or false, got {shown(node)}")
    return node.text == "true"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """What every rank runs. Exactly one of module, script and command is set."""

    module: str | None = field(
        default=None,
        metadata=about(
            "Run as `python -m MODULE`.",
            pattern=r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*",
            valid="the dotted name of a Python module",
        ),
    )
    script: Path | None = field(
        default=None, metadata=about("Run as `python SCRIPT`.", valid="a path")
    )
    command: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "Run as it is, without a shell, once for each of ranks_per_node.", nonempty=True
        ),
    )
    args: tuple[str, ...] = field(
        default=(), metadata=about("Arguments, after the module, script or command.")
    )
    python: str = field(
        default="python3",
        metadata=about(
            "The interpreter for module and script.", valid="a path or a command", read=read_python
        ),
    )
    workdir: Path = field(
        default=Path(),
        metadata=about("The ranks' working directory.", default="the folder of the job file"),
    )
    ranks_per_node: int = field(
        default=1, metadata=about("Ranks on each node: usually its GPUs.", least=1, most=1024)
    )
    env: Mapping[str, str] = field(
        default_factory=dict,
        metadata=about("Variables for every rank, over those of the agent.", read=read_env),
    )
    hook: str = field(
        default="none",
        metadata=about(
            "The trainer's adapter: superv adds its checkpoint arguments at the end of the command "
            "line, knows its log lines, and follows step and phase from inside the ranks.",
            choices=("none", "torchtitan"),
        ),
    )
    preload: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "Modules that one process per node imports ahead; ranks are forked from it when that "
            "is safe, so a restart does not wait for imports. An empty list: every rank imports "
            "for itself.",
            default="torch, torchtitan.train with hook: torchtitan; else none",
        ),
    )

    snapshot: bool = field(
        default=True,
        metadata=about(
            "Ranks run a copy of the code that was made at launch: .py, .toml, .yaml, .yml, .json "
            "and .sh files of at most 1 MB below workdir, the script's folder and the folders of "
            "PYTHONPATH in env, and such that arguments name; on each node's local disk, "
            "read-only. Everything beside them is a link to where it was. "
            "The interpreter and its site-packages are not copied.",
            valid="true or false",
            read=read_switch,
        ),
    )

    def argv(self) -> tuple[str, ...]:
        """A rank's command line, placeholders as they were written."""
        return self.entry() if self.command else (self.python, *self.entry())

    def entry(self) -> tuple[str, ...]:
        """What follows `python` on a rank's command line, or the whole command; as written."""
        if self.module is not None:
            return ("-m", self.module, *self.args)
        if self.script is not None:
            return (str(self.script), *self.args)
        return (*self.command, *self.args)


def read_trainer(node: Node, at: At) -> Trainer:
    """Raises UserError, also for keys that contradict each other."""
    values = read_fields(Trainer, node, at)
    ways = [name for name in ("module", "script", "command") if name in values]
    if len(ways) != 1:
        given = " and ".join(ways) or "none"
        raise at.error(f"expected exactly one of module, script, command; got {given}")
    assert isinstance(node, Table)
    if "python" in values and ways == ["command"]:
        inner = at.inside("python", node.entries["python"])
        raise inner.error("has no effect on a command; put the interpreter into the command")
    trainer = Trainer(**{"workdir": Path(at.file).absolute().parent, **values})
    if trainer.command and trainer.preload:
        inner = at.inside("preload", node.entries["preload"])
        raise inner.error("works with module and script only: a command is started as it is")
    if trainer.command and trainer.hook != "none":
        inner = at.inside("hook", node.entries["hook"])
        raise inner.error("works with module and script only: a command is started as it is")
    if trainer.hook == "torchtitan" and "preload" not in values:
        trainer = replace(trainer, preload=TORCHTITAN_PRELOAD)
    for key in ("args", "command", "env"):
        if key in values:
            texts = values[key].values() if key == "env" else values[key]
            _check_placeholders(texts, at.inside(key, node.entries[key]))
    return trainer


def _check_placeholders(texts: Iterable[str], at: At) -> None:
    """A misspelt placeholder is an error; braces that are none stay as they are."""
    for text in texts:
        for name in re.findall(r"\{([a-z_]{1,40})\}", text):
            guess = did_you_mean(name, PLACEHOLDERS, cutoff=0.8)
            if name not in PLACEHOLDERS and guess:
                raise at.error(f"{quoted(text)}: unknown placeholder {{{name}}}{guess}")


def placeholders(trainer: Trainer) -> frozenset[str]:
    """The names of the placeholders that the trainer's arguments and variables use."""
    texts = (*trainer.command, *trainer.args, *trainer.env.values())
    return frozenset(name for name in PLACEHOLDERS if any(f"{{{name}}}" in t for t in texts))
