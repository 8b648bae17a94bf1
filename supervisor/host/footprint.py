"""Every file, folder and socket that superv makes: one table, held against real runs by tests.

docs/security-files.md is made from it. A path is written with {variables}; folders of the user's
choice are {state_dir}, {node_dir}, {fleet} (the fleet record), {checkpoints} and {tmp} (TMPDIR).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# What stands in paths for something that differs: a regular expression each.
VARIABLES = {
    "run": r"(\.[a-z0-9-]+\.[0-9a-f]{8}|[a-z0-9][a-z0-9-]{0,40}(~[0-9a-f]+)?)",
    "uid": r"\d+",
    "nonce": r"[0-9a-f]{20}",
    "node": r"[A-Za-z0-9][\w.-]*",
    "attempt": r"a\d{4,}",
    "step": r"step-\d+",
    "rank": r"\d+",
    "hex": r"[0-9a-f]+",
    "job": r"local-[0-9a-f]+",
    "hook": r"[a-z]+",
    "n": r"[123]",
    "any": r"[^/]+",
    "below": r".+",
    "mount": r"/.+",
}

ENDS = "the run's end"
STAYS = "a person removes it"
AGED = "a later agent finds it 30 days old"
MOMENT = "moments"

# Which situation shows a row: tests/local and tests/lab play these; the rest is said, not shown.
RUN = "a run"
CODE = "a run whose trainer has code of its own"
SLURM = "a run on Slurm"
LOCAL = "a run without Slurm"
WARM = "a warm start"
SECRET = "a secret from a file"  # noqa: S105 - a situation's name
HOOK = "a hooked trainer"
CHECK = "superv check"
MOVED = "quarantine, retention"
ROOT = "superv healthcheck"
RARE = "an instant, or a fault"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRow:
    """One kind of file, folder or unix socket."""

    path: str
    mode: int | None  # exact; None: whatever the trainer or the user's umask makes of it
    until: str
    holds: str
    kind: str = "file"  # file, folder, socket, link
    shown_by: str = RUN

    def matches(self, path: str, places: Mapping[str, str]) -> bool:
        """Whether this row explains an absolute path, with the user's folders as given."""
        return re.fullmatch(_pattern(self.path, places), path) is not None


def _pattern(path: str, places: Mapping[str, str]) -> str:
    def meant(found: re.Match[str]) -> str:
        name = found[1]
        return re.escape(places[name]) if name in places else VARIABLES[name]

    parts = re.split(r"(\{\w+\})", path)
    return "".join(
        meant(m) if (m := re.fullmatch(r"\{(\w+)\}", part)) else re.escape(part) for part in parts
    )


_RUN = "{state_dir}/runs/{run}"
_HOME = "{node_dir}/superv-{uid}-{nonce}"
_NODE = _HOME + "/{node}"
_ATTEMPT = _NODE + "/{attempt}"
_STARTER = _NODE + "/starter"
_HEALTH = "{health}"


def _file(path: str, holds: str, until: str = STAYS, shown_by: str = RUN) -> FileRow:
    return FileRow(path=path, mode=0o600, until=until, holds=holds, shown_by=shown_by)


def _folder(path: str, holds: str, until: str = STAYS, shown_by: str = RUN) -> FileRow:
    return FileRow(
        path=path, mode=0o700, until=until, holds=holds, kind="folder", shown_by=shown_by
    )


# Where the engine is.
STATE = (
    FileRow(path="{state_dir}", mode=0o755, until=STAYS, holds="all of it", kind="folder"),
    FileRow(
        path="{state_dir}/runs", mode=0o755, until=STAYS, holds="a folder a run", kind="folder"
    ),
    _folder(_RUN, "one run; a name with a dot before it: while it is put together"),
    _file(f"{_RUN}/job.yaml", "the job file as launched"),
    _file(f"{_RUN}/origin", "where the job file lay"),
    _file(f"{_RUN}/environment.json", "the engine's environment: an allow-list of names"),
    _file(f"{_RUN}/secrets.json", "**secret**: variables of `{secret: FILE}`", shown_by=SECRET),
    _file(f"{_RUN}/keys.json", "**secret**: the run's CURVE keys"),
    _file(f"{_RUN}/journal.jsonl", "every event and action"),
    _file(f"{_RUN}/journal.folded", "the run as it comes of that, made again at need", STAYS, RARE),
    _file(f"{_RUN}/journal.lost.{{hex}}", "a journal that was replaced: `--adopt`", shown_by=RARE),
    _file(f"{_RUN}/engine.log", "what the engine says"),
    _folder(f"{_RUN}/logs", "what ranks of ended attempts wrote"),
    _folder(f"{_RUN}/logs/{{attempt}}", "one attempt; the last ten, 256 MB in all, are kept"),
    _file(f"{_RUN}/logs/{{attempt}}/rank{{rank}}.log", "the end of it, or all: secrets masked"),
    _file(f"{_RUN}/logs/{{attempt}}/index.json", "which ranks' they are, and what is missing"),
    _folder(f"{_RUN}/logs/.{{attempt}}.{{hex}}", "the same, while it is written", MOMENT, RARE),
    _file(f"{_RUN}/logs/.{{attempt}}.{{hex}}/{{any}}", "the same", MOMENT, RARE),
    _file(f"{_RUN}/engine.log.{{n}}", "its older lines", shown_by=RARE),
    _file(f"{_RUN}/code.tgz", "the trainer's code as launched"),
    _file(f"{_RUN}/code.json", "what of it is where"),
    FileRow(
        path=f"{_RUN}/control.sock",
        mode=0o600,
        until="the engine's end",
        holds="commands of people: stop, quarantine, attach",
        kind="socket",
    ),
    _file(f"{_RUN}/.{{any}}.{{hex}}", "a file that is being written", MOMENT, RARE),
    _folder(_RUN + "/launch-{any}", "a new launch's files, at `superv resume`", MOMENT, RARE),
    _file(_RUN + "/launch-{any}/{any}", "those", MOMENT, RARE),
)

# The fleet record.
FLEET = (
    FileRow(
        path="{fleet}",
        mode=0o644,
        until=STAYS,
        holds="health of nodes over weeks, exclusions; the umask may take from its mode",
        shown_by=CHECK,
    ),
    FileRow(
        path="{fleet}-journal",
        mode=0o644,
        until=MOMENT,
        holds="SQLite's, as wide as the record",
        shown_by=RARE,
    ),
    _file("{fleet_stem}.write.lock", "nothing: the writers' lock", shown_by=CHECK),
    FileRow(
        path="{fleet}.{hex}.new",
        mode=None,
        until=MOMENT,
        holds="the record's copy, where somebody reads on and on; as wide as it",
        shown_by=RARE,
    ),
    FileRow(
        path="{fleet}.damaged-{rank}",
        mode=None,
        until=STAYS,
        holds="a record that was damaged; as wide as it was",
        shown_by=RARE,
    ),
    _file("{fleet_stem}.sweep.lock", "nothing: a sweep's lock", shown_by=RARE),
)

# claims_dir, where the site has one.
CLAIMS = (
    FileRow(
        path="{claims_dir}/{any}.json",
        mode=0o644,
        until=STAYS,
        holds="whom a user and his runs keep out; the umask may take from its mode",
        shown_by=RARE,
    ),
    _file("{claims_dir}/{any}.lock", "nothing: one change at a time", shown_by=RARE),
    _file("{claims_dir}/.{any}.{hex}", "claims that are being written", MOMENT, RARE),
)

# On every node.
NODE = (
    _folder(_HOME, "an allocation; its name can't be foreseen; all below goes with it", AGED),
    FileRow(
        path=f"{_HOME}/torchx",
        mode=None,
        until=STAYS,
        holds="TorchX's logs of its replicas, empty (torchx: local_cwd)",
        kind="folder",
        shown_by=RARE,
    ),
    _file(f"{_HOME}/allocation.log", "what its script and shells say"),
    _file(f"{_HOME}/key", "**secret**: keys and the engine's address", ENDS),
    _file(f"{_HOME}/key.{{hex}}", "**secret**: the same, just delivered", ENDS, RARE),
    _file(f"{_HOME}/key.{{hex}}.{{hex}}.part", "**secret**: on its way", MOMENT, RARE),
    _file(f"{_HOME}/{{hex}}.{{hex}}", "the trainer's code, packed", ENDS),
    _file(f"{_HOME}/{{hex}}.{{hex}}.{{hex}}.part", "that, on its way", MOMENT, RARE),
    _folder(_NODE, "one agent's files"),
    _file(f"{_NODE}/agent.lock", "nothing: one agent at a time"),
    _file(f"{_NODE}/agent.log", "what the agent says"),
    _file(f"{_NODE}/agent.log.{{n}}", "its older lines", shown_by=RARE),
    _file(f"{_NODE}/agent.key", "**secret**: the agent's own key", ENDS),
    _file(f"{_NODE}/epoch", "the highest epoch of an engine that it obeyed"),
    _file(f"{_NODE}/job.json", "**secret**: how ranks start, their environment too", ENDS),
    _file(f"{_NODE}/ranks.json", "pids of the ranks"),
    _file(f"{_NODE}/orphans.json", "pids of what ranks left behind", shown_by=RARE),
    _file(f"{_NODE}/.{{any}}.{{hex}}", "a file that is being written", MOMENT, RARE),
    FileRow(
        path=f"{_NODE}/bell",
        mode=0o600,
        until="the agent's next start",
        holds="hooks' datagrams: the number of a rank",
        kind="socket",
        shown_by=HOOK,
    ),
    _folder(_ATTEMPT, "one attempt; the last ten are kept"),
    _file(f"{_ATTEMPT}/rank{{rank}}.log", "what the rank prints, secrets that it prints too"),
    _file(f"{_ATTEMPT}/rank{{rank}}.stacks", "stacks that were asked for", shown_by=WARM),
    _file(f"{_ATTEMPT}/rank{{rank}}.state", "step and phase, mapped by the hook", shown_by=HOOK),
    _file(f"{_ATTEMPT}/rank{{rank}}.order.json", "how a cold rank starts", shown_by=RARE),
    _file(
        f"{_ATTEMPT}/rank{{rank}}.env",
        "environment of a rank in a container, secrets too: its shell removes it at its start",
        MOMENT,
        RARE,
    ),
    FileRow(
        path=f"{_ATTEMPT}/rank{{rank}}.error.json",
        mode=None,
        until=STAYS,
        holds="an exception, as the trainer writes it",
        shown_by=RARE,
    ),
    _folder(_STARTER, "the warm starter", ENDS, CODE),
    _file(f"{_STARTER}/superv_starter.py", "its code", ENDS, CODE),
    _file(f"{_STARTER}/superv_hook_{{hook}}.py", "the hook's code", ENDS, HOOK),
    _file(f"{_STARTER}/serve.json", "what it preloads", ENDS, WARM),
    _file(f"{_STARTER}/serve.env", "its environment in a container", MOMENT, RARE),
    _file(f"{_STARTER}/log", "what it prints", ENDS, WARM),
    _file(f"{_STARTER}/.{{any}}.{{hex}}", "a file that is being written", MOMENT, RARE),
    _folder(f"{_NODE}/code", "copies of the trainer's code", ENDS),
    FileRow(
        path=f"{_NODE}/code/{{hex}}",
        mode=0o500,
        until=ENDS,
        holds="one copy, read-only",
        kind="folder",
    ),
    _folder(f"{_NODE}/code/{{hex}}.{{hex}}", "a copy that is being unpacked", MOMENT, RARE),
    FileRow(
        path=f"{_NODE}/code/{{hex}}/{{below}}",
        mode=None,
        until=ENDS,
        holds="code: 0400, or 0500 what can be run; folders 0500; __pycache__ 0700",
        kind="any",
    ),
)

# Without Slurm, elsewhere, and beside the trainer's own.
MORE = (
    FileRow(
        path="{checkpoints}/.superv-run",
        mode=None,
        until=ENDS,
        holds="whose attempts are saved here: name, id, host and folder of the run",
    ),
    FileRow(
        path="{checkpoints}/.superv-run.{hex}",
        mode=None,
        until=MOMENT,
        holds="the same, while it is written",
        shown_by=RARE,
    ),
    _folder("{node_dir}/superv-{uid}-local", "jobs of `launcher: local`", shown_by=LOCAL),
    _file("{node_dir}/superv-{uid}-local/{job}.json", "one job: name and script", shown_by=LOCAL),
    _file("{node_dir}/superv-{uid}-local/.{any}.{hex}", "the same", MOMENT, RARE),
    _folder(_HEALTH, "what checks remember; root's is /var/lib/superv/health", shown_by=CHECK),
    _file("{health}/brake.json", "how many nodes superv has drained, for Prolog", shown_by=ROOT),
    _file("{health}/suspects.json", "what one look found and a second must too", shown_by=ROOT),
    FileRow(
        path="{health}/node.db",
        mode=0o644,
        until=STAYS,
        holds="this node's own fleet record",
        shown_by=ROOT,
    ),
    _folder("{health}/prolog", "what Prolog's checks remember", shown_by=ROOT),
    _file("{health}/prolog/{node}.json", "the same", shown_by=ROOT),
    _file("{health}/prolog/{node}.lock", "nothing: one run of checks at a time", shown_by=ROOT),
    _file(f"{_HEALTH}/{{node}}.json", "counters, the last reports", shown_by=CHECK),
    _file(f"{_HEALTH}/{{node}}.lock", "nothing: one run of checks at a time", shown_by=CHECK),
    _file(f"{_HEALTH}/{{node}}.json.new", "the state, while it is written", MOMENT, RARE),
    _file("{mount}/.superv-{any}", "a probe of shared storage: a few bytes", MOMENT, RARE),
    _file("{tmp}/superv-{any}", "a file on its way to sbcast, keys too", MOMENT, RARE),
    _folder("{tmp}/superv-demo-{any}", "`superv demo`'s whole world", "its end", RARE),
    FileRow(
        path="{checkpoints}/{attempt}/{below}",
        mode=None,
        until="checkpoints.keep",
        holds="what the trainer saves",
        kind="any",
    ),
    FileRow(
        path="{checkpoints}/{attempt}",
        mode=None,
        until="its last checkpoint's",
        holds="one attempt's checkpoints",
        kind="folder",
    ),
    FileRow(
        path="{checkpoints}/quarantine/{below}",
        mode=None,
        until=STAYS,
        holds="checkpoints that a person condemned",
        kind="any",
        shown_by=MOVED,
    ),
    FileRow(
        path="{checkpoints}/{attempt}/.superv-trash/{below}",
        mode=None,
        until=MOMENT,
        holds="what retention deletes",
        kind="any",
        shown_by=MOVED,
    ),
)

FILES = (*STATE, *FLEET, *CLAIMS, *NODE, *MORE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListeningPort:
    """One kind of network socket that listens."""

    who: str  # a word of the process's command line
    where: str
    until: str
    takes: str


PORTS = (
    ListeningPort(
        who="supervisor.engine.process",
        where="TCP, engine_address, one of engine_ports",
        until="the engine's end",
        takes="ZeroMQ with CURVE, from the run's own keys only",
    ),
    ListeningPort(
        who="supervisor.agent",
        where="TCP, the address that faces the engine, a port of the kernel's choice",
        until="the agent's end",
        takes="nothing: peers see that it answers; every connection is closed unread",
    ),
    ListeningPort(
        who="a rank",
        where="TCP, slot 0's node, one of rank_ports (MASTER_PORT)",
        until="the attempt's end",
        takes="the trainer's store (torch's TCPStore): **plaintext, anybody on the network**",
    ),
    ListeningPort(
        who="superv doctor",
        where="TCP, one of engine_ports or rank_ports",
        until="a look's end",
        takes="nothing: whether a connection comes through",
    ),
)


def page() -> str:
    """docs/security-files.md below its head."""
    rows = ["| path | mode | until | holds |", "|---|---|---|---|"]
    for row in FILES:
        mode = f"{row.mode:04o}" if row.mode is not None else "the umask's"
        what = {"file": "", "any": ""}.get(row.kind, f" ({row.kind})")
        seen = f"; seen with: {row.shown_by}" if row.shown_by != RUN else ""
        rows.append(f"| `{row.path}`{what} | {mode} | {row.until} | {row.holds}{seen} |")
    rows += ["", "## Ports", "", "| who | where | until | takes |", "|---|---|---|---|"]
    rows += [f"| {p.who} | {p.where} | {p.until} | {p.takes} |" for p in PORTS]
    return "\n".join(rows) + "\n"
