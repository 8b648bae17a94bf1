"""What NCCL would see: the variables of a process, and those of its files.

NCCL reads, as each variable is first asked for, the environment; then the file that NCCL_CONF_FILE
names, or ~/.nccl.conf where it names none; then /etc/nccl.conf. What is set already stays
(NVIDIA/nccl src/misc/param.cc). A line of a file is NAME=VALUE, blanks and quotes included; one
that begins with # is a comment since 2.26.2.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

OURS = re.compile(
    r"(NCCL|TORCH_NCCL|TORCH_FR|TORCH_GLOO|TORCH_DISTRIBUTED|TORCH_CPP|GLOO|OFI_NCCL|FI|UCX|SHARP"
    r"|TP_SOCKET|ENABLE_NCCL|CUDA|PYTORCH_CUDA|OMPI_MCA_coll|PMIX_MCA|DOCA_GPUNETIO)_"
)
SYSTEM_FILE = "/etc/nccl.conf"
USERS_FILE = ".nccl.conf"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ASSIGNED = re.compile(r"(?:^|[\s;&|\"'])(?:export\s+|-x\s+)?([A-Z][A-Z0-9_]+)=", re.M)
_DEFAULT = re.compile(r"\$\{([A-Z][A-Z0-9_]+):?[-=]([^${}`]*)\}")
_SET_UNLESS = re.compile(r"\$\{([A-Z][A-Z0-9_]+):?=[^${}`]*\}")
_EXPORTED = re.compile(r"--export[=\s](\S+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvSetting:
    """A variable's value, and where it is from: a process, a file and line."""

    name: str
    text: str
    where: str
    known: bool = True  # False: a shell works the value out


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfFile:
    """A file of NCCL's, line by line. A line without = has an empty name."""

    lines: tuple[EnvSetting, ...]
    comments: tuple[EnvSetting, ...]

    @classmethod
    def parsed(cls, text: str, path: str) -> ConfFile:
        lines, comments = [], []
        for number, line in enumerate(text.split("\n"), 1):
            where = f"{path}:{number}"
            if line.startswith("#"):
                comments.append(EnvSetting(name="", text=line, where=where))
            elif line.strip():
                name, equals, value = line.partition("=")
                name, value = (name, value) if equals else ("", line)
                lines.append(EnvSetting(name=name, text=value, where=where))
        return cls(lines=tuple(lines), comments=tuple(comments))

    def settings(self) -> list[EnvSetting]:
        """Those whose names could be a variable's."""
        return [line for line in self.lines if _NAME.fullmatch(line.name)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What counts, by name; `hidden` is what something before it overrides; `raw` are the lines of
    NCCL's own files as they stand, for what is wrong in the writing itself."""

    settings: Mapping[str, EnvSetting]
    hidden: tuple[EnvSetting, ...] = ()
    raw: tuple[EnvSetting, ...] = field(default=())  # name is empty where the line has no =
    comments: tuple[EnvSetting, ...] = field(default=())

    @classmethod
    def of(cls, *layers: Iterable[EnvSetting], files: Iterable[ConfFile] = ()) -> Environment:
        """The first that has a name counts: layers, then NCCL's files, line by line."""
        files = tuple(files)
        found: dict[str, EnvSetting] = {}
        hidden = []
        for layer in (*layers, *(file.settings() for file in files)):
            for setting in layer:
                if setting.name in found:
                    hidden.append(setting)
                else:
                    found[setting.name] = setting
        return cls(
            settings=found,
            hidden=tuple(hidden),
            raw=tuple(line for file in files for line in file.lines),
            comments=tuple(line for file in files for line in file.comments),
        )


def of_mapping(variables: Mapping[str, str], where: str) -> list[EnvSetting]:
    """Those variables that are of any interest here."""
    return [
        EnvSetting(name=name, text=text, where=where)
        for name, text in sorted(variables.items())
        if OURS.match(name)
    ]


def of_script(text: str, path: str) -> list[EnvSetting]:
    """What a job script, an env file or a command line sets; the last one of a name counts.

    Understood are NAME=VALUE, export, mpirun's -x and `--export=ALL,NAME=VALUE`. What the shell
    would work out (`$…`, backticks) is kept as it stands and marked, apart from a name's own
    default: `NAME=${NAME:-VALUE}` and `: ${NAME:=VALUE}` set it where nothing before them did.
    """
    found: dict[str, EnvSetting] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("#") and not line.lstrip().startswith("#SBATCH"):
            continue
        for name, value in _assigned(line):
            if OURS.match(name):
                if (own := _DEFAULT.fullmatch(value)) and own[1] == name:
                    if name in found:
                        continue
                    value = own[2]
                known = not re.search(r"[$`]", value)
                where = f"{path}:{number}"
                found.pop(name, None)
                found[name] = EnvSetting(name=name, text=value, where=where, known=known)
    return list(found.values())


def _assigned(line: str) -> Iterator[tuple[str, str]]:
    for match in _EXPORTED.finditer(line):
        for item in match[1].strip("\"'").split(","):
            name, equals, value = item.partition("=")
            if equals:
                yield name, value
    for match in _SET_UNLESS.finditer(line):
        yield match[1], match[0]
    rest_of_line = _EXPORTED.sub(" ", line)
    for match in _ASSIGNED.finditer(rest_of_line):
        yield match[1], _word(rest_of_line[match.end() :])


def _word(text: str) -> str:
    """The first word as a shell takes it, without its quotes."""
    if not text[:1].strip():
        return ""
    try:
        lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|()")
        lexer.whitespace_split = True
        lexer.commenters = ""
        return (lexer.get_token() or "").rstrip("\"'")
    except ValueError:  # a quote that the next line closes
        return text.strip("\"'")


def of_node(variables: Mapping[str, str], where: str, root: Path, home: str) -> Environment:
    """A process with these variables on the machine whose files are below root.

    Files that can't be read are left out: NCCL does so too, and says nothing.
    """
    named = variables.get("NCCL_CONF_FILE") or (f"{home}/{USERS_FILE}" if home else "")
    files = [
        ConfFile.parsed(text, path)
        for path in (named, SYSTEM_FILE)
        if path and (text := _text(root, path)) is not None
    ]
    return Environment.of(of_mapping(variables, where), files=files)


def _text(root: Path, path: str) -> str | None:
    try:
        return (root / path.lstrip("/")).read_text(errors="replace")
    except OSError:
        return None
