"""The sbatch options that a user may set, and those that are superv's own."""

from __future__ import annotations

import re
from dataclasses import replace

from supervisor.config.document import (
    At,
    YamlMapping,
    YamlNode,
    YamlScalar,
    quoted,
    shown,
    shown_key,
)
from supervisor.config.schema import WrongKeys, read_mapping, truth, unknown

# Long option → what it is for. superv asks for one task a node with all of the node's resources.
OPTIONS = {
    "account": "who pays",
    "begin": "not before this time",
    "comment": "free text",
    "constraint": "features that every node must have",
    "contiguous": "a flag: neighbouring nodes only",
    "exclusive": "a flag, or `user`: share the nodes with nobody",
    "gpus-per-node": "GPUs of each node, as `8` or `b200:8`",
    "gres": "generic resources of each node, as `gpu:8`",
    "licenses": "cluster-wide licenses",
    "mail-type": "when Slurm sends mail",
    "mail-user": "to whom",
    "mem": "memory of each node; `0` is all of it",
    "nice": "lower the priority",
    "partition": "one or several, with commas",
    "priority": "where the site allows it",
    "qos": "quality of service",
    "reservation": "use these reserved nodes",
    "switches": "at most so many leaf switches, as `2@01:00:00`",
    "time": "the allocation's limit, as `14-00:00:00`",
    "tmp": "local disk that every node must have",
    "wckey": "accounting key",
}
_FLAGS = ("contiguous", "exclusive")

# Option → why a user may not set it.
_SUPERV = "superv sets it"
OWNED = {
    "array": "a run is one job at a time",
    "chdir": "write trainer.workdir",
    "cpu-bind": "the agent gets the whole node, and ranks choose for themselves",
    "cpus-per-task": "write exclusive: true, which brings all cores",
    "dependency": "superv submits when nodes are needed",
    "distribution": "superv orders the slots itself",
    "error": "superv writes logs to the nodes' local disks; see `superv logs`",
    "exclude": "superv excludes nodes by itself, by evidence",
    "export": "write trainer.env",
    "export-file": "write trainer.env",
    "gpus": "spares make the total differ; write gpus-per-node",
    "input": "ranks read no input",
    "job-name": "superv finds its jobs by their names; write name at the top of the file",
    "kill-on-bad-exit": "a rank's exit must not end the agents",
    "no-kill": f"{_SUPERV}: the allocation has to outlive its nodes",
    "no-requeue": f"{_SUPERV}",
    "nodefile": "superv chooses nodes; restrict them with constraint or reservation",
    "nodelist": "superv chooses nodes; restrict them with constraint or reservation",
    "nodes": "write nodes and spares at the top of the file",
    "ntasks": "one agent runs on every node; write trainer.ranks_per_node",
    "ntasks-per-node": "one agent runs on every node; write trainer.ranks_per_node",
    "open-mode": "superv writes logs to the nodes' local disks; see `superv logs`",
    "output": "superv writes logs to the nodes' local disks; see `superv logs`",
    "overcommit": "one agent runs on every node",
    "oversubscribe": "ranks need their nodes for themselves; write exclusive: true",
    "propagate": f"{_SUPERV}: the nodes' own limits count",
    "requeue": "superv restarts ranks inside the allocation; Slurm's requeue waits 120 s",
    "signal": f"{_SUPERV}",
    "wait": "superv follows the job by itself",
    "wrap": "the job runs superv's agents; write trainer.command",
}

_TIME = re.compile(
    r"[0-9]{1,9}(:[0-5]?[0-9]){0,2}|[0-9]{1,4}-[0-9]{1,2}(:[0-5]?[0-9]){0,2}|(?i:unlimited|infinite)"
)
_TIME_VALID = "minutes, hours:minutes:seconds or days-hours:minutes:seconds, as 14-00:00:00"


def read_slurm(node: YamlNode, at: At) -> dict[str, str]:
    """sbatch long option → value; that of a flag is `true` or `false`.

    Raises UserError for an option that superv owns, one it does not know, or a value that no
    sbatch would take.
    """
    if isinstance(node, YamlScalar) and node.kind == "null":
        return {}
    if not isinstance(node, YamlMapping):
        raise at.error(f"expected a mapping of sbatch options to values, got {shown(node)}")
    options, wrong = {}, WrongKeys()
    for name, value in node.entries.items():
        inner = at.inside(shown_key(name), value)
        with wrong.collected(name):
            if name in OWNED:
                raise inner.error(f"cannot be set here: {OWNED[name]}")
            if name not in OPTIONS:
                raise unknown(name, OPTIONS, inner, "no sbatch option that superv passes on")
            one = read_mapping(replace(node, entries={name: value}), at)
            options[name] = _check(name, one[name], value, inner)
    wrong.told()
    return options


def _check(name: str, value: str, node: YamlNode, at: At) -> str:
    if name in _FLAGS:
        if (on := truth(node)) is not None:
            return "true" if on else "false"
        if name == "exclusive" and value in ("user", "mcs"):
            return value
        raise at.error(f"expected true or false, got {shown(node)}")
    written_as_truth = isinstance(node, YamlScalar) and node.kind == "bool"
    if (
        (written_as_truth and value.lower() in ("true", "false"))
        or not value
        or not value.isprintable()
    ):
        raise at.error(f"expected a value ({OPTIONS[name]}), got {shown(node)}")
    if name == "time" and not _TIME.fullmatch(value):
        raise at.error(f"expected {_TIME_VALID}, got {quoted(value)}")
    return value
