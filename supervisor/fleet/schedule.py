"""How a sweep comes to run by itself: a line for cron, or a systemd timer."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from supervisor.core.errors import UserError
from supervisor.host import trusted

CRON_MARK = "# superv sweep; report: superv nodes"  # by which our line is found again
MAX_CRON_CHARS = 990  # cron takes lines of 998
CARRIED = ("SUPERV_SITE", "SLURM_CONF", "XDG_CONFIG_HOME", "XDG_STATE_HOME")


def crontab_line(argv: Sequence[str], env: Mapping[str, str], every_min: int) -> str:
    """The line for a crontab. `%` means a new line there (crontab(5)). Raises UserError."""
    words = shlex.join(["env", *(f"{k}={v}" for k, v in env.items()), *_one_line(argv, env)])
    line = f"*/{every_min} * * * * {words.replace('%', chr(92) + '%')}  {CRON_MARK}\n"
    if len(line) > MAX_CRON_CHARS:
        raise UserError(
            f"the line for the crontab has {len(line)} characters, {MAX_CRON_CHARS} at most; "
            "put the settings of checks into site.yaml"
        )
    return line


def systemd_units(argv: Sequence[str], env: Mapping[str, str], every_min: int) -> dict[str, str]:
    """A systemd service and its timer, by file name. systemd.service(5): quoting, `%` and `$`.

    Raises UserError.
    """

    def quoted(word: str, special: str) -> str:
        escaped = {"\\": "\\\\", '"': '\\"', **{c: c + c for c in special}}
        return '"' + "".join(escaped.get(c, c) for c in word) + '"'

    words = " ".join(quoted(word, "%$") for word in _one_line(argv, env))
    given = "".join(f"Environment={quoted(f'{k}={v}', '%')}\n" for k, v in env.items())
    service = (
        f"[Unit]\nDescription=superv sweep\n\n[Service]\nType=oneshot\n{given}ExecStart={words}\n"
        "SuccessExitStatus=1\n"  # a node got worse: the sweep itself went well
    )
    timer = (
        "[Unit]\nDescription=superv sweep, every so often\n\n"
        f"[Timer]\nOnBootSec={every_min}min\nOnUnitInactiveSec={every_min}min\n\n"
        "[Install]\nWantedBy=timers.target\n"
    )
    return {"superv-sweep.service": service, "superv-sweep.timer": timer}


def _one_line(argv: Sequence[str], env: Mapping[str, str]) -> Sequence[str]:
    """Raises UserError for what would begin a line of its own."""
    for word in (*argv, *env.values()):
        if not word.isprintable():
            raise UserError(f"{word!r}: no line breaks and control characters, please")
    return argv


def cron_environment(env: Mapping[str, str]) -> dict[str, str]:
    """What cron and systemd have to be told, so that a sweep is the same as one by hand.

    Raises UserError where Slurm's commands are not to be found.
    """
    path = env.get("PATH", os.defpath)
    if os.geteuid() == 0:
        path = ":".join(trusted.folders({"PATH": path})[0])
    found = shutil.which("sinfo", path=path)
    if found is None:
        raise UserError("sinfo is not on PATH here: superv needs Slurm's client commands")
    folders = dict.fromkeys([str(Path(found).parent), "/usr/local/bin", "/usr/bin", "/bin"])
    kept = {name: env[name] for name in CARRIED if env.get(name)}
    return {"PATH": ":".join(folders), **kept}


def with_crontab_line(before: str, line: str) -> str:
    """The crontab with the line in it, once."""
    kept = [row for row in before.splitlines() if not row.endswith(CRON_MARK)]
    return "\n".join([*kept, line.rstrip("\n")]) + "\n"
