"""Mistakes in job.yaml and site.yaml, each with the exact line that its user reads.

In files/job_mistakes.txt and files/site_mistakes.txt a mistake is `@ BASE`, the lines of the file
(after BASE's), and `> ` with the error. files/every_key.txt is made: each key, and what comes of
values of every kind. After a wanted change: UPDATE_GOLDEN=1 pytest tests/golden, and read the diff.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.config import Site, load_site, parse_job
from supervisor.config.job import Job
from supervisor.config.schema import keys
from supervisor.core.errors import UserError

FILES = Path(__file__).parent / "files"
HEAD = "name: demo\nnodes: 2\n"
BASES = {
    "none": "",
    "head": HEAD,
    "minimal": HEAD + "trainer: {module: train}\n",
    "titan": HEAD + "trainer: {module: torchtitan.train, hook: torchtitan}\n",
}
VALUES = (
    *('""', "x", "a b", "~", "true", "0", "-1", "1.5", "1e99", "99999999999999999999", "{}"),
    *("[]", "[x]", "[-1]", "[{}]", "{x: y}", "{x: [y]}", '"\\0"', "$x", "/a/b"),
)


def of_job(text: str) -> Any:
    return parse_job(text, Path("job.yaml"))


def of_site(text: str) -> Any:
    Path("site.yaml").write_text(text)
    return load_site({"HOME": "/home/ann"}, Path("site.yaml"))


READERS = {"job": of_job, "site": of_site}


def error_of(read: Any, text: str) -> str:
    with pytest.raises(UserError) as caught:
        read(text)
    return str(caught.value)


def compare(name: str, made: str) -> None:
    path = FILES / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(made)
    assert made == path.read_text()


@pytest.mark.parametrize("kind", READERS)
def test_a_mistake_is_one_exact_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def answered(match: re.Match[str]) -> str:
        error = error_of(READERS[kind], BASES[match[1]] + match[2])
        return f"@ {match[1]}\n{match[2]}> {error}\n"

    written = (FILES / f"{kind}_mistakes.txt").read_text()
    made, count = re.subn(r"^@ (\w+)\n((?:(?!> ).*\n)*)> .*\n", answered, written, flags=re.M)
    assert count == written.count("\n> ") > 20
    compare(f"{kind}_mistakes.txt", made)


def every_key() -> Iterator[tuple[str, str, str]]:
    """(reader, dotted key, the file's text with %s for the value)."""
    for kind, top in (("job", Job), ("site", Site)):
        for name, key in keys(top).items():
            base = "".join(
                f"{k}: {v}\n"
                for k, v in {"name": "a", "nodes": 2, "trainer": "{module: t}"}.items()
                if kind == "job" and k != name
            )
            yield kind, name, f"{base}{name}: %s\n"
            if dataclasses.is_dataclass(key.hint):
                for inner in keys(key.hint):  # type: ignore[arg-type]
                    more = {"trainer": "module: t, ", "checkpoints": "dir: /c, "}.get(name, "")
                    more = "" if inner in ("module", "dir", "script", "command") else more
                    yield kind, f"{name}.{inner}", f"{base}{name}: {{{more}{inner}: %s}}\n"


def outcome(read: Any, text: str, key: str) -> str:
    """The error without its place, or the value that was read."""
    try:
        found = read(text)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        return str(error)
    for part in key.split("."):
        found = getattr(found, part)
    return f"= {type(found).__name__}" if dataclasses.is_dataclass(found) else f"= {found!r}"


def test_every_key_with_values_of_every_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = []
    for kind, key, text in every_key():
        alike: dict[str, list[str]] = {}
        for value in VALUES:
            said = outcome(READERS[kind], text % value, key).replace(str(tmp_path), "HERE")
            said = re.sub(rf"^{kind}\.yaml:\d+: ({re.escape(key)}(: )?)?", "", said)
            alike.setdefault(re.sub(r", got (?!none;)[^;]*", "", said), []).append(value)
        lines.append(f"{kind}.yaml {key}\n")
        lines += [f"  {said}\n      {'  '.join(values)}\n" for said, values in alike.items()]
    compare("every_key.txt", "".join(lines))
