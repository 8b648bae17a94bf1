"""TorchX's scheduler `superv`: `torchx run -s superv dist.ddp …` starts a run under superv.

TorchX finds it by its entry point, and newer versions by the name of this package. It speaks to
superv by its commands alone, so it may live in another environment: standard library, torchx and
what torchx brings (yaml).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import subprocess  # noqa: TID251 - this runs in TorchX, not in superv
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from torchx.schedulers.api import (
    AppDryRunInfo,
    DescribeAppResponse,
    ListAppResponse,
    Scheduler,
    Stream,
    filter_regex,
)
from torchx.specs import (
    AppDef,
    AppState,
    ReplicaStatus,
    Role,
    RoleStatus,
    macros,
    runopts,
)

COMMAND_S = 180.0  # a launch asks storage, which has 60 s, and the scheduler
ROLE = "trainer"  # what status and log call the one role: superv knows no names of roles
UNKNOWN_RUN = "no run "

# superv's phases (docs/status.md) → TorchX's states.
STATES = {
    "pending": AppState.PENDING,
    "gathering": AppState.PENDING,
    "checking": AppState.PENDING,
    "done": AppState.SUCCEEDED,
    "held": AppState.FAILED,
    "stopped": AppState.CANCELLED,
}

# torchrun's options that dist.ddp and dist.spmd write; each has a value.
TORCHRUN = {
    *("--rdzv_backend", "--rdzv_endpoint", "--rdzv_id", "--rdzv_conf", "--nnodes"),
    *("--nproc_per_node", "--node_rank", "--tee", "--role", "--max_restarts", "--monitor_interval"),
}
_SECRET = re.compile(r"(?i)token|secret|password|passwd|credential|api_?key|private_?key")


@dataclass(frozen=True)
class Handover:
    """What is handed to `superv launch`."""

    name: str
    job: str  # job.yaml
    superv: tuple[str, ...]

    def __repr__(self) -> str:
        shown = "\n".join(
            re.sub(r"(: ).*", r"\1…", line) if _SECRET.search(line.partition(":")[0]) else line
            for line in self.job.splitlines()
        )
        return f"{shlex.join(self.superv)} launch --detach JOB.YAML\n\n{shown}"


class SupervScheduler(Scheduler[Mapping[str, Any]]):
    """Runs an app of one role under superv: its replicas are the nodes that train."""

    def __init__(self, session_name: str) -> None:
        super().__init__("superv", session_name)

    def _run_opts(self) -> runopts:
        opts = runopts()
        text = {
            "job": "a job.yaml to begin with: checkpoints, policy, slurm, hook …; the app has its "
            "name, nodes, what ranks run and their environment",
            "launcher": "sbatch, local or torchx; else the job file's, else sbatch",
            "partition": "Slurm's partition; more options of Slurm belong into the job file",
            "account": "Slurm's account",
            "time": "the allocation's limit, as 14-00:00:00",
            "python": "the ranks' interpreter; else the job file's, else python3",
            "workdir": "the ranks' working directory; else the job file's, else this one",
        }
        for name, help_text in text.items():
            opts.add(name, type_=str, help=help_text, default=None)
        opts.add("spares", type_=int, help="nodes that wait to take a slot over", default=None)
        return opts

    def _validate(self, app: AppDef, scheduler: str, *more: Any) -> None:
        """Resources are not demanded: nodes are given whole. Later versions hand the options on."""

    # --- to superv ----------------------------------------------------------------------------

    def _submit_dryrun(self, app: AppDef, cfg: Mapping[str, Any]) -> AppDryRunInfo[Handover]:
        if len(app.roles) != 1:
            raise ValueError(f"superv runs apps of one role; {app.name} has {len(app.roles)}")
        (role,) = app.roles
        if role.mounts:
            raise ValueError("superv mounts nothing for an app: write `container` in the job file")
        name = _run_name(app.name)
        job = _job(name, role, cfg)
        made = Handover(name=name, job=yaml.serialize(job, allow_unicode=True), superv=_superv())
        return AppDryRunInfo(made, repr)

    def schedule(self, dryrun_info: AppDryRunInfo[Handover]) -> str:
        launch = dryrun_info.request
        with tempfile.TemporaryDirectory(prefix="superv-") as folder:  # of mode 0700
            path = Path(folder) / "job.yaml"
            path.write_text(launch.job, encoding="utf-8")
            sys.stderr.write(_asked(launch.superv, "launch", "--detach", str(path)))
        return launch.name

    def _cancel_existing(self, app_id: str) -> None:
        _asked(_superv(), "stop", app_id)

    # --- what superv says ---------------------------------------------------------------------

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        status = _status(app_id)
        if status is None:
            return None
        state = _state(status)
        replicas = [
            ReplicaStatus(id=s["slot"], state=state, role=ROLE, hostname=s["node"] or "")
            for s in status["slots"]
        ]
        return DescribeAppResponse(
            app_id=app_id,
            state=state,
            num_restarts=max(0, (status["attempt"] or 1) - 1),
            msg=_message(status),
            roles=[Role(name=ROLE, image="", num_replicas=max(1, len(replicas)))],
            roles_statuses=[RoleStatus(ROLE, replicas)],
        )

    def list(self) -> list[ListAppResponse]:
        there = json.loads(_asked(_superv(), "status", "--all", "--json"))
        runs = [run for run in there if "phase" in run]
        return [ListAppResponse(app_id=run["name"], state=_state(run)) for run in runs]

    def log_iter(
        self,
        app_id: str,
        role_name: str,
        k: int = 0,
        regex: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        should_tail: bool = False,
        streams: Stream | None = None,
    ) -> Iterable[str]:
        """The log of the first rank of node `k`, both streams in one."""
        if streams not in (None, Stream.COMBINED):
            raise ValueError("superv keeps both streams of a rank in one log: --streams combined")
        if since or until:
            raise ValueError("superv's logs carry no times: since and until can't be chosen by")
        status = _status(app_id)
        rank = k * (status["ranks_per_node"] if status else 1)
        argv = (*_superv(), "logs", app_id, "--rank", str(rank))
        lines = _lines((*argv, "--follow") if should_tail else argv)
        return filter_regex(regex, lines) if regex else lines


# --- job.yaml -------------------------------------------------------------------------------------


def _run_name(name: str) -> str:
    """A run's name that was never used before, as TorchX expects of the ids of apps."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:30].strip("-")
    return f"{plain or 'app'}-{secrets.token_hex(4)}"


def _node(value: Any) -> yaml.Node:
    """A plain value as YAML, where every text is quoted."""
    return yaml.compose(json.dumps(value, ensure_ascii=False), Loader=yaml.SafeLoader)


def _put(table: yaml.MappingNode, name: str, value: yaml.Node | None) -> None:
    """Give a key of a mapping its value; None takes it away."""
    table.value = [(k, v) for k, v in table.value if k.value != name]
    if value is not None:
        table.value.append((yaml.ScalarNode("tag:yaml.org,2002:str", name), value))


def _table(parent: yaml.MappingNode, name: str) -> yaml.MappingNode:
    """The mapping that is the value of a key; it is made where there is none."""
    there = next((v for k, v in parent.value if k.value == name), None)
    if not isinstance(there, yaml.MappingNode):
        there = yaml.MappingNode("tag:yaml.org,2002:map", [])
        _put(parent, name, there)
    return there


def _text(table: yaml.MappingNode, name: str) -> str:
    there = next((v for k, v in table.value if k.value == name), None)
    return there.value if isinstance(there, yaml.ScalarNode) else ""


def _begun(path: str | None) -> tuple[yaml.MappingNode, Path]:
    """The job file to begin with, and the folder that relative paths in it start at."""
    empty = yaml.MappingNode("tag:yaml.org,2002:map", [])
    if not path:
        return empty, Path.cwd()
    with open(path, encoding="utf-8") as file:
        made = yaml.compose(file, Loader=yaml.SafeLoader)
    if not isinstance(made, yaml.MappingNode):
        raise ValueError(f"{path}: no job file: expected a mapping of keys to values")
    return made, Path(path).absolute().parent


def _job(name: str, role: Role, cfg: Mapping[str, Any]) -> yaml.MappingNode:
    """The job file: what the app says, over what the file of the option `job` says."""
    job, home = _begun(cfg.get("job"))
    values = macros.Values(
        img_root="", app_id=name, replica_id="{node_rank}", rank0_env="MASTER_ADDR"
    )
    role = values.apply(role)
    _put(job, "name", _node(name))
    _put(job, "nodes", _node(role.num_replicas))
    if cfg.get("spares") is not None:
        _put(job, "spares", _node(cfg["spares"]))
    if cfg.get("launcher"):
        _put(job, "launcher", _node(cfg["launcher"]))
    _slurm(job, role, cfg)
    checkpoints = next((v for k, v in job.value if k.value == "checkpoints"), None)
    if isinstance(checkpoints, yaml.MappingNode) and (there := _text(checkpoints, "dir")):
        _put(checkpoints, "dir", _node(str(home / Path(there).expanduser())))
    _trainer(_table(job, "trainer"), role, cfg, home)
    return job


def _slurm(job: yaml.MappingNode, role: Role, cfg: Mapping[str, Any]) -> None:
    wanted = {name: cfg[name] for name in ("partition", "account", "time") if cfg.get(name)}
    launcher = _text(job, "launcher") or "sbatch"
    gpus = role.resource.gpu if role.resource else 0
    if gpus > 0 and launcher == "sbatch":
        table = _table(job, "slurm")
        if not _text(table, "gres") and not _text(table, "gpus-per-node"):
            wanted["gpus-per-node"] = str(gpus)
    for name, value in wanted.items():
        _put(_table(job, "slurm"), name, _node(value))


def _trainer(trainer: yaml.MappingNode, role: Role, cfg: Mapping[str, Any], home: Path) -> None:
    """What ranks run. superv is the launcher: of torchrun's command what it starts is left."""
    workdir = cfg.get("workdir") or _text(trainer, "workdir") or (home if cfg.get("job") else None)
    folder = Path.cwd() if workdir is None else home / Path(workdir).expanduser()
    _put(trainer, "workdir", _node(str(folder)))
    python = cfg.get("python") or _text(trainer, "python")
    words = _torchrun(role)
    for key in ("module", "script", "command", "args"):
        _put(trainer, key, None)
    if words is None:
        _put(trainer, "command", _node([role.entrypoint, *role.args]))
        _put(trainer, "python", None)
    else:
        ranks, entry, args = words
        kind, what = entry
        _put(trainer, kind, _node(str(folder / what) if kind == "script" else what))
        _put(trainer, "args", _node(args))
        _put(trainer, "ranks_per_node", _node(ranks))
        if python:
            _put(trainer, "python", _node(str(home / python) if "/" in python else python))
    env = _table(trainer, "env")
    for name, value in role.env.items():
        _put(env, name, _node(value))


def _torchrun(role: Role) -> tuple[int, tuple[str, str], list[str]] | None:
    """Ranks on each node, script or module, and its arguments, of `bash -c 'torchrun …'`."""
    if role.entrypoint != "bash" or len(role.args) != 2 or role.args[0] != "-c":
        return None
    words = shlex.split(role.args[1])
    if not words or words[0] != "torchrun":
        return None
    ranks, at = 1, 1
    while at < len(words) and words[at].startswith("-") and words[at] != "-m":
        name, equals, value = words[at].partition("=")
        if name not in TORCHRUN:
            raise ValueError(f"superv starts ranks by itself and has no use for torchrun's {name}")
        value = value if equals else words[at + 1]
        at += 1 if equals else 2
        if name == "--nproc_per_node":
            ranks = int(value)
    rest = words[at:]
    if rest[:1] == ["-m"]:
        return ranks, ("module", rest[1]), rest[2:]
    if not rest:
        raise ValueError("torchrun is told no script")
    return ranks, ("script", rest[0]), rest[1:]


# --- superv's commands ----------------------------------------------------------------------------


def _superv() -> tuple[str, ...]:
    """What $SUPERV says; else the command beside this Python; else the one in PATH."""
    if given := os.environ.get("SUPERV"):
        return tuple(shlex.split(given))
    beside = Path(sys.executable).with_name("superv")
    return (str(beside),) if beside.exists() else ("superv",)


def _run(command: tuple[str, ...], *argv: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [*command, *argv],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_S,
        )
    except FileNotFoundError:
        raise RuntimeError(f"{command[0]}: no such command; name superv's in $SUPERV") from None


def _asked(command: tuple[str, ...], *argv: str) -> str:
    """What a command of superv's says. Raises RuntimeError with its one line of error."""
    done = _run(command, *argv)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise RuntimeError(said[-1] if said else f"superv {argv[0]} ended with {done.returncode}")
    return done.stdout


def _status(app_id: str) -> dict[str, Any] | None:
    """superv's status of a run; None where there is none."""
    done = _run(_superv(), "status", app_id, "--json")
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        said = done.stderr.strip() or "superv said nothing"
        raise RuntimeError(said.splitlines()[-1]) from None
    if "phase" in answer:
        return answer
    if UNKNOWN_RUN in answer.get("error", ""):
        return None
    raise RuntimeError(answer.get("error") or f"superv's status of {app_id} can't be read")


def _state(status: Mapping[str, Any]) -> AppState:
    return STATES.get(status["phase"], AppState.RUNNING)


def _message(status: Mapping[str, Any]) -> str:
    step = f", step {status['step']}" if status.get("step") is not None else ""
    reason = f": {status['reason']}" if status.get("reason") else ""
    return f"{status['phase']}{step}{reason}"


def _lines(argv: tuple[str, ...]) -> Iterable[str]:
    """The lines of a command as they come. Raises RuntimeError where it fails."""
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stderr is not None
    try:
        yield from child.stdout
        if child.wait() != 0:
            raise RuntimeError(child.stderr.read().strip().splitlines()[-1])
    finally:
        child.kill()
        child.wait()


# --- how TorchX finds it --------------------------------------------------------------------------


def create_scheduler(session_name: str, **kwargs: Any) -> SupervScheduler:
    """The factory that the entry point names."""
    return SupervScheduler(session_name)


try:  # after 0.7: packages of the namespace torchx_plugins register themselves
    from torchx.plugins import register
except ImportError:
    pass
else:
    create_scheduler = register.scheduler(name="superv")(create_scheduler)
