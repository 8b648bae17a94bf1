"""One name, one thing: no two classes of the repository share a name."""

from __future__ import annotations

import ast
import subprocess
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_no_two_classes_share_a_name() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(listed.stdout.split())):  # in a merge git lists some three times
        if (ROOT / name).exists():
            for node in ast.parse((ROOT / name).read_text()).body:
                if isinstance(node, ast.ClassDef):
                    found[node.name].append(f"{name}:{node.lineno}")
    twice = {name: places for name, places in found.items() if len(places) > 1}
    assert twice == {}
