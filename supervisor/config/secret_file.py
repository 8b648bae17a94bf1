"""The files that job.yaml's secrets are in: read once, at launch."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from supervisor.config.document import named
from supervisor.config.schema import passable
from supervisor.core.errors import UserError
from supervisor.core.secret import MAX_BYTES


def read_secrets(files: Mapping[str, Path]) -> dict[str, str]:
    """Variable → value. Raises UserError, which names the variable and never quotes a value."""
    return {variable: _read(variable, path) for variable, path in files.items()}


def _read(variable: str, path: Path) -> str:
    """The file's text without the newline at its end."""
    what = f"trainer.env.{variable}.secret: {named(path)}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with os.fdopen(fd, "rb") as file:
            info = os.fstat(file.fileno())
            content = file.read(MAX_BYTES + 1) if stat.S_ISREG(info.st_mode) else b""
    except IsADirectoryError:
        raise UserError(f"{what}: is not a regular file") from None
    except OSError as error:
        raise UserError(f"{what}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(info.st_mode):
        raise UserError(f"{what}: is not a regular file")
    if info.st_uid not in (os.geteuid(), 0) or info.st_mode & 0o077:
        raise UserError(f"{what}: others could read or write it; make it yours: chmod 600 {path}")
    if len(content) > MAX_BYTES:
        raise UserError(f"{what}: larger than {MAX_BYTES // 1024} KiB; is this the right file?")
    try:
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise UserError(f"{what}: not UTF-8 text") from None
    if not text or not passable(text):
        why = "empty" if not text else "holds a character that cannot be passed on"
        raise UserError(f"{what}: {why}")
    return text
