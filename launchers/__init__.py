"""How agents get onto nodes. A launcher is a module here and a line in the table LAUNCHERS."""

from __future__ import annotations

import importlib

from supervisor.core.errors import UserError
from supervisor.core.ports import LAUNCHERS, Launcher


def load(name: str) -> Launcher:
    """The launcher of that name. Raises UserError on a name that is not in the table."""
    if name not in LAUNCHERS:
        raise UserError(f"launcher {name!r} is unknown; valid: {', '.join(sorted(LAUNCHERS))}")
    module, _, attribute = LAUNCHERS[name].partition(":")
    launcher: Launcher = getattr(importlib.import_module(module), attribute)()
    return launcher
