"""Keys that were renamed since the last release: the old name works until the next, with a note.

After that release a row is taken out. (Journals read a Policy's old names for good.)
"""

from __future__ import annotations

from collections.abc import Mapping

from supervisor.core import policy

# The dataclass → old name → new name.
RENAMED: Mapping[str, Mapping[str, str]] = {
    "Policy": policy.RENAMED,
    "Ssh": {"most_at_once": "max_connections"},
}
