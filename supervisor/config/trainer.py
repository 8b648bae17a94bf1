"""The `trainer` and `progress` of job.yaml: what a rank runs, and what its log lines mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from supervisor import hooks
from supervisor.config.document import (
    At,
    YamlList,
    YamlMapping,
    YamlNode,
    YamlScalar,
    quoted,
    shown,
    shown_key,
)
from supervisor.config.schema import (
    WrongKeys,
    did_you_mean,
    passable,
    read_fields,
    read_path,
    read_text_value,
    without_parents,
)
from supervisor.core import step_lines
from supervisor.core.rank_contract import PLACEHOLDERS, reserved
from supervisor.core.setting import about

RESUME_PLACEHOLDERS = ("resume_path", "resume_step")
_NO_NAME = "not a variable's name: letters, digits and _ only, no digit first"
_ENV_VALID = "a mapping of names to text or {secret: FILE}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressPatterns:
    """Patterns (Python's `re`, searched in each line without its colour codes)."""

    step: str = field(
        metadata=about(
            "A line that reports a finished step: group `step`, and groups `loss` and `total` (how "
            "far it counts) where it has them. Thousands separators are understood.",
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
    "plain": ProgressPatterns(step=step_lines.STEP, resumed=step_lines.RESUMED),
    **{
        name: ProgressPatterns(step=hook.STEP_LINE, resumed=hook.RESUMED_LINE)
        for name, hook in hooks.ADAPTERS.items()
    },
}


def read_progress(node: YamlNode, at: At) -> ProgressPatterns:
    """A named pair of patterns, or the user's own. Raises UserError."""
    names = tuple(sorted(NAMED_PROGRESS))
    if isinstance(node, YamlScalar) and node.kind != "null":
        if node.text not in NAMED_PROGRESS:
            guess = did_you_mean(node.text, names)
            valid = f"one of {', '.join(names)}, or a mapping with step and resumed"
            raise at.error(f"expected {valid}, got {shown(node)}{guess}")
        return NAMED_PROGRESS[node.text]
    progress = ProgressPatterns(**read_fields(ProgressPatterns, node, at))
    assert isinstance(node, YamlMapping)
    _check_pattern(
        progress.step, ("step",), ("step", "total", "loss"), at.inside("step", node.entries["step"])
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
        raise at.error(f"the group {shown_key(name)} has no meaning; valid: {', '.join(valid)}")


def read_env(node: YamlNode, at: At) -> dict[str, str | Path]:
    """Variables for every rank: text, or the file that a secret is in.

    Raises UserError, also for names that superv sets. No error quotes a value.
    """
    if isinstance(node, YamlScalar) and node.kind == "null":
        return {}
    if not isinstance(node, YamlMapping):
        got = "a list" if isinstance(node, YamlList) else "text"
        raise at.error(f"expected {_ENV_VALID}, got {got}")
    values: dict[str, str | Path] = {}
    wrong = WrongKeys()
    for name, value in node.entries.items():
        inner = at.inside(shown_key(name), value)
        with wrong.collected(name):
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise inner.error(
                    "not a variable's name: letters, digits and _ only, no digit first"
                )
            if reserved(name):
                raise inner.error("superv sets this variable for every rank; remove it")
            values[name] = _read_env_value(value, inner)
    wrong.told()
    return values


def _read_env_value(node: YamlNode, at: At) -> str | Path:
    if isinstance(node, YamlScalar) and node.kind != "null":
        if not passable(node.text):
            raise at.error("holds a character that cannot be passed on")
        return node.text
    if isinstance(node, YamlMapping) and list(node.entries) == ["secret"]:
        file = node.entries["secret"]
        inner = at.inside("secret", file)
        if isinstance(file, YamlScalar) and re.match(r"~?/", file.text):
            return read_path(read_text_value(file, inner), inner)
        raise inner.error("expected the absolute path of a file that holds the secret")
    got, hint = "a list", ""
    if isinstance(node, YamlMapping):
        got, name = "a mapping", next(iter(node.entries), "")
        hint = f'; quote it: "{{{name}}}"' if name in PLACEHOLDERS else ""
    elif isinstance(node, YamlScalar):
        got, hint = "nothing", '; write "" for an empty text'
    raise at.error(f"expected text or {{secret: FILE}}, got {got}{hint}")


def read_python(node: YamlNode, at: At) -> str:
    """A command found on the nodes' PATH, or a path. Raises UserError."""
    if not isinstance(node, YamlScalar) or node.kind == "null" or not node.text.strip():
        raise at.error(f"expected a path or a command, got {shown(node)}")
    text = read_text_value(node, at)
    return str(read_path(text, at)) if "/" in text or "$" in text else text


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
        default=1, metadata=about("Ranks on each node: usually its GPUs.", ge=1, le=1024)
    )
    env: Mapping[str, str] = field(
        default_factory=dict,
        metadata=about(
            "Variables for every rank, over those of the agent. The value of a secret comes from a "
            "file of yours of mode 0600, read once at launch: `HF_TOKEN: {secret: ~/.hf-token}`. "
            "Such values, and those of names like API_KEY, TOKEN or PASSWORD, are shown nowhere.",
            valid=_ENV_VALID,
            read=read_env,
        ),
    )
    secrets: Mapping[str, Path] = field(default_factory=dict)  # of env: variable → its file
    hook: str = field(
        default="none",
        metadata=about(
            "The trainer's adapter: superv sets the checkpoint fields of its configuration inside "
            "the ranks, knows its log lines, and follows step and phase from there.",
            choices=("none", *hooks.ADAPTERS),
        ),
    )
    dump_dir: Path | None = field(
        default=None,
        metadata=about(
            "Where ranks put what they write as they train: TorchTitan's dump folder (structured "
            "logs of every step, traces, profiles). Best a folder on each node's own disk: where "
            "shared storage hangs, such a write stops the step. Checkpoints don't go there.",
            valid="an absolute path",
            default="what the trainer's configuration says",
            pattern=r"/.*",
        ),
    )
    preload: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "Modules that one process per node imports ahead; ranks are forked from it when that "
            "is safe, so a restart does not wait for imports. An empty list: every rank imports "
            "for itself.",
            default="; ".join(
                f"{', '.join(hook.PRELOAD)} with hook: {name}"
                for name, hook in hooks.ADAPTERS.items()
            )
            + "; else none",
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


def read_trainer(node: YamlNode, at: At) -> Trainer:
    """Raises UserError, also for keys that contradict each other."""
    values = read_fields(Trainer, node, at)
    ways = [name for name in ("module", "script", "command") if name in values]
    if len(ways) != 1:
        given = " and ".join(ways) or "none"
        raise at.error(f"expected exactly one of module, script, command; got {given}")
    assert isinstance(node, YamlMapping)
    if "python" in values and ways == ["command"]:
        inner = at.inside("python", node.entries["python"])
        raise inner.error("has no effect on a command; put the interpreter into the command")
    if "env" in values:
        given = values["env"]
        values["env"] = {name: v for name, v in given.items() if isinstance(v, str)}
        values["secrets"] = {name: v for name, v in given.items() if isinstance(v, Path)}
    trainer = Trainer(**{"workdir": without_parents(Path(at.file).absolute().parent), **values})
    if trainer.command and trainer.preload:
        inner = at.inside("preload", node.entries["preload"])
        raise inner.error("works with module and script only: a command is started as it is")
    if trainer.command and trainer.hook != "none":
        inner = at.inside("hook", node.entries["hook"])
        raise inner.error("works with module and script only: a command is started as it is")
    if trainer.hook == "none" and trainer.dump_dir is not None:
        inner = at.inside("dump_dir", node.entries["dump_dir"])
        raise inner.error("has no effect without a hook; write hook: torchtitan, or remove it")
    if trainer.hook != "none" and "preload" not in values:
        trainer = replace(trainer, preload=hooks.ADAPTERS[trainer.hook].PRELOAD)
    for key in ("args", "command", "env"):
        if key in values:
            inner = at.inside(key, node.entries[key])
            if key == "env":
                _check_placeholders(values[key].values(), inner, quote=False)
            else:
                _check_placeholders(values[key], inner)
    return trainer


def _check_placeholders(texts: Iterable[str], at: At, *, quote: bool = True) -> None:
    """A misspelt placeholder is an error; braces that are none stay as they are."""
    for text in texts:
        for name in re.findall(r"\{([a-z_]{1,40})\}", text):
            guess = did_you_mean(name, PLACEHOLDERS, cutoff=0.8)
            if name not in PLACEHOLDERS and guess:
                what = f"{quoted(text)}: unknown" if quote else "unknown"
                raise at.error(f"{what} placeholder {{{name}}}{guess}")


def placeholders(trainer: Trainer) -> frozenset[str]:
    """The names of the placeholders that the trainer's arguments and variables use."""
    texts = (*trainer.command, *trainer.args, *trainer.env.values())
    return frozenset(name for name in PLACEHOLDERS if any(f"{{{name}}}" in t for t in texts))
