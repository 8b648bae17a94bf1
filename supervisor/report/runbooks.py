"""The runbooks' texts, as they travel with superv, and as parts of a page."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator

from markupsafe import Markup, escape

_NAME = re.compile(r"[a-z]+(-[a-z]+)*")


def runbook(cause: str) -> str:
    """The text of docs/runbooks/CAUSE.md; empty where there is none of that name."""
    if not _NAME.fullmatch(cause):  # a journal of another superv may say anything
        return ""
    path = importlib.resources.files("supervisor.report") / "runbooks" / f"{cause}.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def as_html(text: str) -> Markup:
    """What of Markdown runbooks use: headings, paragraphs, lists, code, emphasis; links as text."""
    return Markup("\n").join(_blocks(text))


def _blocks(text: str) -> Iterator[Markup]:
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.splitlines()
        if not lines:
            continue
        if lines[0].startswith("#"):
            yield Markup("<h4>{}</h4>").format(_inline(lines[0].lstrip("# ")))
            lines = lines[1:]
            if not lines:
                continue
        if lines[0].startswith(("    ", "|", "```")):
            code = "\n".join(line.removeprefix("    ") for line in lines if line[:3] != "```")
            yield Markup("<pre>{}</pre>").format(code)
        elif re.match(r"([-*]|\d+\.) ", lines[0]):
            items = re.split(r"(?m)^(?:[-*]|\d+\.) ", "\n".join(lines))[1:]
            inner = Markup("").join(Markup("<li>{}</li>").format(_inline(item)) for item in items)
            yield Markup("<ul>{}</ul>").format(inner)
        else:
            yield Markup("<p>{}</p>").format(_inline("\n".join(lines)))


def _inline(text: str) -> Markup:
    shown = str(escape(" ".join(text.split())))
    shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", shown)
    shown = re.sub(r"`([^`]+)`", r"<code>\1</code>", shown)
    shown = re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", shown)
    shown = re.sub(r"(?<!\w)\*([^*]+)\*(?!\w)", r"<i>\1</i>", shown)
    return Markup(shown)  # noqa: S704 - escaped above; only these marks were added
