"""Write the pages that are made from the code, and remove those of areas that are no more.

python docs/make.py
"""

from __future__ import annotations

from pathlib import Path

from healthchecks.frame import catalogue
from ncclconf.lint import rules
from supervisor import signatures
from supervisor.config.page import page as configuration
from supervisor.core import node_states, phases, way_forward
from supervisor.core.types import Cause
from supervisor.host import footprint

DOCS = Path(__file__).parent
MADE = "<!-- Made by `python docs/make.py`; don't edit. -->"
FILES_HEAD = f"""\
# Every file and socket that superv makes

{MADE}

Owned by whoever runs superv; tests hold a real run against this table, under a umask that takes
nothing away. What it means is in [security.md](security.md). `{{state_dir}}` and `{{node_dir}}` are
site.yaml's, `{{fleet}}` its fleet record, `{{checkpoints}}` is `checkpoints.dir`, `{{tmp}}` TMPDIR,
`{{mount}}` a shared file system, `{{health}}` the folder of what health checks remember.

## Files

"""


def pages() -> dict[str, str]:
    """Path below docs → text."""
    return {
        "configuration.md": configuration(),
        "nodes.md": node_states.page(),
        "phases.md": phases.page(),
        "security-files.md": FILES_HEAD + footprint.page(),
        "runbooks.md": runbooks(),
        "nccl-rules.md": nccl_rules(),
        "causes.md": causes(),
        **catalogue.pages(),
    }


def nccl_rules() -> str:
    """Every rule of `superv nccl lint`."""
    rows = [
        "# Rules of superv nccl lint",
        "",
        MADE,
        "",
        "What they are for, and how to ask: [nccl.md](nccl.md).",
        "",
        "| rule | severity | why | what to do | source |",
        "|---|---|---|---|---|",
    ]
    for one in sorted(rules(), key=lambda rule: rule.id):
        cells = (f"`{one.id}`", one.severity, one.why, one.fix, one.source)
        rows.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def runbooks() -> str:
    """Every cause, and what holds a run up, with the first line of its page."""
    rows = ["# Runbooks", "", MADE, "", "Each begins with the command to type.", ""]
    rows += ["## Causes of incidents", "", "| cause | in short |", "|---|---|"]
    rows += [_runbook(cause) for cause in Cause]
    rows += ["", "## What holds a run up", "", "| what | in short |", "|---|---|"]
    rows += [_runbook(state) for state in way_forward.STATES]
    return "\n".join(rows) + "\n"


def _runbook(name: str) -> str:
    title = (DOCS / "runbooks" / f"{name}.md").read_text().partition("\n")[0]
    return f"| [{name}](runbooks/{name}.md) | {title.partition(': ')[2]} |"


CAUSES_HEAD = f"""\
# Causes that `superv diagnose` tells apart

{MADE}

Each with whose business it is, what to do, and the signatures it is recognised by: their role, whom
they may blame, and whose wording they are. What becomes of them is in [diagnose.md](diagnose.md).
"""


def causes() -> str:
    """Every cause, with what to do and its signatures."""
    known = signatures.load()
    page = [CAUSES_HEAD]
    for cause in sorted(known.causes.values(), key=lambda one: one.name):
        page += [f"## {cause.name}", "", f"{cause.short.capitalize()} (*{cause.kind}*). {cause.do}"]
        rows = [one for one in known.all if one.cause is cause]
        if rows:
            page += ["", "| signature | role | may blame | source |", "|---|---|---|---|"]
        page += [f"| `{o.id}` | {o.role} | {o.blames} | {_cell(o.source)} |" for o in rows]
        page.append("")
    return "\n".join(page).rstrip() + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    made = pages()
    for old in (DOCS / "checks").glob("*.md"):
        if f"checks/{old.name}" not in made:
            old.unlink()
    for name, text in made.items():
        (DOCS / name).write_text(text)


if __name__ == "__main__":
    main()
