"""The trainer's arguments: files that they name, and options that it would refuse.

By the text of the trainer's sources alone, so what is found is a warning: nothing runs them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from healthchecks.frame.report import Finding
from supervisor.config import Job
from supervisor.doctor.files import SeenFiles, ask, judge, why
from supervisor.doctor.finding import warn

CONFIGS = (".toml", ".yaml", ".yml")
# An option with such a word names a file that is read; --config-name of Hydra is none.
_READ = re.compile(r"(?i)^-[cf]$|config|conf\b|cfg|recipe|settings|deepspeed|params")
_NOT_READ = re.compile(r"(?i)config[-_]name|out|save|dump|write|log")

# What no path of this machine is: placeholders, what the trainer expands, and addresses.
_ELSE = re.compile(r"\{[a-z_]+\}|\$|^[a-z][a-z0-9+.-]*://")
# Where the trainer has folders of its own for such files, their names are no paths of ours.
_FOLDERS = re.compile(r"(?i)(config|conf|cfg)[-_]?(path|dir)")


def named_files(job: Job) -> list[tuple[str, Path, bool]]:
    """Configurations that arguments name: the word, where ranks look for it, and whether the
    option says that it is read."""
    found, before = [], ""
    inside = job.container
    for arg in job.trainer.args:
        option, equals, value = arg.partition("=") if arg.startswith("-") else (before, "", arg)
        before = arg if arg.startswith("-") and not equals else ""
        word = value or option
        written = _NOT_READ.search(option) is not None
        if word.startswith("-") or not word.endswith(CONFIGS) or _ELSE.search(word) or written:
            continue
        path = job.trainer.workdir / Path(word).expanduser()
        if inside and (inside.workdir or not path.is_relative_to(job.trainer.workdir)):
            continue  # it may be the image's
        reads = _READ.search(option) is not None and ("/" in word or bool(option))
        found.append((word, path, reads))
    return found


def named(job: Job, seen: SeenFiles) -> list[Finding]:
    found = []
    sure = not job.trainer.command and not any(map(_FOLDERS.search, flags(job.trainer.args)))
    for word, path, reads in named_files(job):
        there = seen.path(str(path))
        if there is None or there["kind"] != "missing":
            continue
        text = f"trainer.args: {word}: {path}: {why(str(path), there)}"
        fix = "fix the path; relative ones begin at trainer.workdir"
        near = there.get("near", "/")
        found.append(
            judge(job, near, "args", text, fix) if reads and sure else warn("args", text, fix)
        )
    return found


def flags(args: Sequence[str]) -> list[str]:
    """The long options among arguments, without values and what follows `--`."""
    ours = args[: args.index("--")] if "--" in args else args
    return [arg.partition("=")[0] for arg in ours if re.match(r"--[A-Za-z]", arg)]


def options(job: Job, seen: SeenFiles) -> list[Finding]:
    """What a script's own argparse would refuse."""
    takes = seen.told.get("options")
    if takes is None:
        return []
    known = [*takes, "--help"]
    return [
        _unknown_flag(flag, known, f"{job.trainer.script} takes no such option")
        for flag in flags(job.trainer.args)
        if not any(name.startswith(flag) for name in known)
    ]


def _unknown_flag(flag: str, known: Sequence[str], what: str) -> Finding:
    close = difflib.get_close_matches(flag, known, n=1)
    guess = f"; did you mean {close[0]}?" if close else ""
    return warn("args", f"trainer.args: {flag}: {what}{guess}", "fix trainer.args in the job file")


async def fields(job: Job, places: Mapping[str, list[str]], deadline_s: float) -> list[Finding]:
    """Dotted options that name no field of any configuration in the trainer's sources."""
    dotted = [flag for flag in flags(job.trainer.args) if "." in flag]
    folders = dict.fromkeys([p for at in places.values() for p in at if "torch/" not in f"{p}/"])
    if not dotted or not folders:
        return []
    own = [
        str(job.trainer.workdir),
        *([str(job.trainer.script.parent)] if job.trainer.script else []),
    ]
    seen = await ask({"paths": [], "folders": [*folders, *dict.fromkeys(own)]}, deadline_s)
    known = frozenset(seen.told.get("fields") or ())
    found = []
    for flag in dotted if known else ():
        parts = [part.replace("-", "_") for part in flag[2:].split(".")]
        bad = next(
            (p for p in parts if p not in known and p.removeprefix("no_") not in known), None
        )
        if bad is not None:
            close = difflib.get_close_matches(bad, known, n=1)
            guess = f"; did you mean {flag.replace(bad, close[0])}?" if close else ""
            text = f"trainer.args: {flag}: no configuration of the trainer has a field {bad}{guess}"
            found.append(warn("args", text, "fix trainer.args in the job file"))
    return found
