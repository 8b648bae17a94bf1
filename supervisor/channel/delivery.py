"""The private folder of an allocation on a node: how it is called, and what arrives in it.

Temporary folders are shared with other users of the cluster. So nothing secret or executable lies
directly in one: an allocation has a folder of mode 0700 whose name nobody else can know before it
is there, and whatever the engine sends gets a name of its own in it that was never used before.
What sends (sbcast) refuses a name that is taken, so a file that somebody else made first is never
filled. The folder's path travels in the job's environment, which other users can't read, and not
in argv.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path

VARIABLE = "SUPERV_NODE_FOLDER"  # holds the folder's path, in the environment of agents
KEY = "key"
_NAME = re.compile(r"superv-(\d+)-[0-9a-f]{20}")


def nonce(secret: str, job_name: str) -> str:
    """80 bits that only the run's keys tell; the same for each try to submit the job."""
    return hmac.new(secret.encode(), job_name.encode(), hashlib.sha256).hexdigest()[:20]


def folder(node_dir: Path, unguessable: str) -> str:
    """The allocation's folder on each of its nodes."""
    return f"{node_dir}/superv-{os.getuid()}-{unguessable}"


def new_name(kind: str) -> str:
    """A name for one delivery, "key" or the code's digest: it is used once."""
    return f"{kind}.{secrets.token_hex(8)}"


def delivered(home: Path, kind: str) -> list[Path]:
    """What arrived of a kind, the newest first; what was kept of earlier deliveries comes last."""
    there = [path for path in home.glob(f"{kind}.*") if not path.name.endswith(".part")]
    newest = sorted(there, key=lambda path: path.lstat().st_mtime_ns, reverse=True)
    return [*newest, *(path for path in [home / kind] if path.exists())]


def older(home: Path) -> list[Path]:
    """Folders beside this one that allocations of the same user have left on the node."""
    return [path for path in home.parent.iterdir() if path != home and is_ours(path)]


def is_ours(path: Path) -> bool:
    """Whether it is an allocation's folder of this user. Raises OSError where it can't be seen."""
    name = _NAME.fullmatch(path.name)
    if name is None or name[1] != str(os.getuid()):
        return False
    try:
        info = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid()
