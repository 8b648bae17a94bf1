"""Whether the engine outlives its user's logout, and comes back after a reboot (systemd-logind)."""

from __future__ import annotations

import pwd
from collections.abc import Iterable
from pathlib import Path

from healthchecks.frame.report import Finding
from supervisor.doctor.finding import ok, warn

CHECK = "logout"
# logind.conf(5): the later ones override the earlier ones; a drop-in overrides the file.
FILES = ("usr/lib/systemd/logind.conf", "run/systemd/logind.conf", "etc/systemd/logind.conf")
DROP_INS = ("usr/lib", "usr/local/lib", "run", "etc")
UNIT = "the user unit in docs/systemd.md"


def settings(root: Path) -> dict[str, str]:
    """logind's settings as its files have them, drop-ins by the order of their names."""
    found: dict[str, str] = {}
    drop_ins: dict[str, Path] = {}
    for place in DROP_INS:
        folder = root / place / "systemd/logind.conf.d"
        drop_ins |= {path.name: path for path in sorted(folder.glob("*.conf"))}
    files = [root / name for name in FILES if (root / name).exists()][-1:]
    for path in (*files, *(drop_ins[name] for name in sorted(drop_ins))):
        for line in _lines(path):
            key, is_setting, value = line.partition("=")
            if is_setting and not line.startswith(("#", ";")):
                found[key.strip()] = value.strip()
    return found


def _lines(path: Path) -> Iterable[str]:
    try:
        return [line.strip() for line in path.read_text(errors="replace").splitlines()]
    except OSError:
        return []


def look(uid: int, root: Path = Path("/")) -> Finding:
    """What happens to a user's engines at logout and after a reboot.

    Compiled-in defaults of systemd: KillUserProcesses=no, KillExcludeUsers=root.
    """
    if not (root / "run/systemd/seats").exists():
        return ok(CHECK, "no systemd-logind runs here: nobody ends processes at logout")
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    lingers = (root / "var/lib/systemd/linger" / user).exists()
    given = settings(root)
    kills = given.get("KillUserProcesses", "no").lower() in ("yes", "true", "on", "1")
    spared = user in given.get("KillExcludeUsers", "root").split()
    only = given.get("KillOnlyUsers", "").split()
    if kills and not spared and (not only or user in only):
        fix = f"run the engine as {UNIT}, after `loginctl enable-linger {user}`"
        if lingers:
            fix = f"run the engine as {UNIT}: lingering alone spares no session's processes"
        return warn(CHECK, f"KillUserProcesses=yes: an engine ends when {user} logs out", fix)
    if lingers:
        return ok(CHECK, f"engines outlive logout; {user} lingers: {UNIT} starts them after a boot")
    text = f"engines outlive logout; after a reboot nobody starts them ({user} does not linger)"
    return ok(CHECK, f"{text}: `superv attach RUN` does, or {UNIT}")
