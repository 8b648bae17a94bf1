"""job.yaml: one training run as its user wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from supervisor import hooks
from supervisor.config.container import ContainerOf, check_path
from supervisor.config.document import At, YamlMapping, named, parse, read_text
from supervisor.config.nccl import Nccl
from supervisor.config.notify import NotifyTarget
from supervisor.config.preflight import Preflight
from supervisor.config.schema import read_rest, without_parents
from supervisor.config.slurm import read_slurm
from supervisor.config.torchx import Torchx, check_args
from supervisor.config.trainer import (
    NAMED_PROGRESS,
    RESUME_PLACEHOLDERS,
    ProgressPatterns,
    Trainer,
    placeholders,
    read_progress,
    read_trainer,
)
from supervisor.core.errors import SeveralError, UserError
from supervisor.core.policy import Policy
from supervisor.core.ports import LAUNCHERS
from supervisor.core.setting import about


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """Where the trainer saves, and what a whole checkpoint holds."""

    dir: Path = field(
        metadata=about("Each attempt saves into a directory of its own in here, as DIR/a0007.")
    )
    format: str = field(
        default="dcp",
        metadata=about("PyTorch's distributed checkpoints, one `step-N` each.", choices=("dcp",)),
    )
    required: tuple[str, ...] = field(
        default=(),
        metadata=about(
            "What a checkpoint must hold to be resumed: each is a key of the saved state, or the "
            "part of one before the first dot.",
            default="; ".join(
                f"{', '.join(hook.STATE_KEYS)} with hook: {name}"
                for name, hook in hooks.ADAPTERS.items()
            )
            + "; else none",
        ),
    )
    keep: int = field(
        default=10,
        metadata=about(
            "Verified checkpoints that are kept: the newest so many, as TorchTitan does by itself; "
            "superv turns that off. Older ones are deleted, once a newer one is verified. 0 keeps "
            "all.",
            valid="0, or 2 and more",
            ge=0,
            le=1_000_000,
        ),
    )
    keep_every: int = field(
        default=0,
        metadata=about(
            "Checkpoints of steps that this divides are kept for good. 0: there are none such.",
            unit="steps",
            ge=0,
            le=1_000_000_000,
        ),
    )
    handoff: str | None = field(
        default=None,
        metadata=about(
            "Says that the trainer itself reads SUPERV_SAVE_DIR, SUPERV_RESUME_PATH and "
            "SUPERV_RESUME_STEP, which are set for every rank. Without it and without a hook, the "
            "trainer's args, command or env must use {save_dir} and one of {resume_path} and "
            "{resume_step}.",
            choices=("env",),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A checked job.yaml."""

    name: str = field(
        metadata=about(
            "The run's name. One run of a name is alive at a time; a second launch attaches.",
            pattern=r"[a-z0-9][a-z0-9-]{0,40}",
            valid="1 to 41 of a-z, 0-9 and -, no - first",
        )
    )
    nodes: int = field(metadata=about("Nodes that train: the slots.", ge=1, le=100_000))
    spares: int = field(
        default=0,
        metadata=about(
            "Nodes that wait, with an agent, to take a slot over; none is waited for.",
            ge=0,
            le=10_000,
        ),
    )
    launcher: str = field(
        default="sbatch",
        metadata=about(
            "How agents get onto nodes. With `local` the nodes are processes of this machine, for "
            "trials: no Slurm, no root. With `torchx` TorchX starts them (docs/torchx.md).",
            choices=tuple(LAUNCHERS),
        ),
    )
    torchx: Torchx | None = field(
        default=None,
        metadata=about("Needed with `launcher: torchx`.", default="none"),
    )
    slurm: Mapping[str, str] = field(
        default_factory=dict,
        metadata=about(
            "Long options of sbatch; below is the list of those that are passed on.",
            valid="a mapping of sbatch options to values",
            read=read_slurm,
        ),
    )
    trainer: Trainer = field(metadata=about("What every rank runs.", read=read_trainer))
    container: ContainerOf | None = field(
        default=None,
        metadata=about(
            "Ranks run in a container, agents outside (docs/containers.md).", default="none"
        ),
    )
    progress: ProgressPatterns = field(
        default=NAMED_PROGRESS["plain"],
        metadata=about(
            "How log lines show progress.",
            valid=f"one of {', '.join(sorted(NAMED_PROGRESS))}, or a mapping",
            default="torchtitan with hook: torchtitan; else plain",
            read=read_progress,
        ),
    )
    checkpoints: Checkpoints | None = field(
        default=None,
        metadata=about(
            "Without it every restart begins at step 0.",
            default="no checkpoints: restarts begin at step 0",
        ),
    )
    nccl: Nccl = field(
        default_factory=Nccl,
        metadata=about("NCCL's variables, which trainer.env sets.", default="see below"),
    )
    preflight: Preflight = field(
        default_factory=Preflight,
        metadata=about("Health checks of the nodes, before the ranks start and beside them."),
    )
    policy: Policy = field(
        default_factory=Policy, metadata=about("Limits and budgets; every key has a default.")
    )
    notify: tuple[NotifyTarget, ...] = field(
        default=(),
        metadata=about(
            "Called when a run is held, swaps a node, waits for what a person has to end, or "
            "ends; beside those of site.yaml (docs/notify.md).",
            valid="a list of {command: [PROGRAM, ARGUMENT …]}",
        ),
    )
    path: Path  # the job file, absolute: relative paths in it start at its folder
    source: str  # its text; parse_job(source, path) gives this Job again
    notes: tuple[str, ...] = ()  # one line each, for whoever launches it

    @property
    def on_slurm(self) -> bool:
        """Whether the nodes are Slurm's."""
        return self.launcher == "sbatch" or (
            self.torchx is not None and self.torchx.scheduler == "slurm"
        )

    @property
    def on_this_machine(self) -> bool:
        """Whether the nodes are processes of the machine where the run is launched."""
        return self.launcher == "local" or (
            self.torchx is not None and self.torchx.scheduler == "local_cwd"
        )


def load_job(path: Path) -> Job:
    """Read and check a job file. Raises UserError: one line, with file, line and key."""
    return parse_job(read_text(path), path)


def look_at_job(path: Path) -> tuple[Job | None, list[UserError]]:
    """As `load_job`, with what can be read of the file, and every mistake.

    Of a key that is needed and wrong something else stands there; None where there is no trainer.
    Raises UserError for a file that can't be read at all.
    """
    return _read_job(read_text(path), path)


def parse_job(text: str, path: Path) -> Job:
    """Check the text of a job file; `path` names it in errors and anchors its relative paths.

    Raises UserError.
    """
    job, wrong = _read_job(text, path)
    if wrong:
        raise SeveralError(wrong, f"superv doctor {named(path)}")
    assert job is not None
    return job


_STAND_INS = {"name": "unnamed", "nodes": 1}


def _read_job(text: str, path: Path) -> tuple[Job | None, list[UserError]]:
    at = At(file=path)
    try:
        table = parse(text, path)
    except UserError as error:
        return None, [error]
    values, wrong = read_rest(Job, table, at)
    if wrong and "trainer" not in values:
        return None, wrong
    job = Job(**{**_STAND_INS, **values}, path=without_parents(path.absolute()), source=text)
    job = replace(job, notes=tuple(at.notes))
    if job.trainer.hook != "none":
        job = _hook_defaults(job, table)
    if not wrong:
        try:
            _check_launcher(job, table, at)
            _check_handoff(job, table, at)
            _check_container(job, table, at)
        except UserError as error:
            wrong = [error]
    return job, wrong


def _check_launcher(job: Job, table: YamlMapping, at: At) -> None:
    """What is said of a launcher is said of the one that is used."""
    if job.launcher == "torchx" and job.torchx is None:
        inner = at.inside("launcher", table.entries["launcher"])
        raise inner.error("needs to know whose nodes: write torchx: {scheduler: slurm}")
    if job.torchx is not None:
        inner = at.inside("torchx", table.entries["torchx"])
        if job.launcher != "torchx":
            raise inner.error(f"has no effect with launcher: {job.launcher}; remove one of the two")
        check_args(job.torchx, table.entries["torchx"], inner)
    if not job.on_slurm and "slurm" in table.entries:
        inner = at.inside("slurm", table.entries["slurm"])
        what = "launcher: local" if job.torchx is None else f"torchx: {job.torchx.scheduler}"
        raise inner.error(f"has no effect with {what}; remove one of the two")


def _hook_defaults(job: Job, table: YamlMapping) -> Job:
    """What the hook knows, where the user does not say otherwise."""
    if "progress" not in table.entries:
        job = replace(job, progress=NAMED_PROGRESS[job.trainer.hook])
    section = table.entries.get("checkpoints")
    if (
        job.checkpoints is not None
        and isinstance(section, YamlMapping)
        and "required" not in section.entries
    ):
        keys = hooks.ADAPTERS[job.trainer.hook].STATE_KEYS
        job = replace(job, checkpoints=replace(job.checkpoints, required=keys))
    return job


def _check_container(job: Job, table: YamlMapping, at: At) -> None:
    """Paths of superv's own that have to be mounted can be."""
    if job.container is None:
        return
    inner = at.inside("container", table.entries["container"])
    if job.container.runtime == "pyxis" and not job.on_slurm:
        raise inner.error("runtime: pyxis is Slurm's: without it write enroot or apptainer")
    trainer = at.inside("trainer", table.entries["trainer"])
    for path in (job.trainer.workdir, job.trainer.script):
        if path is not None:
            check_path(str(path), trainer)
    if job.checkpoints is not None:
        check_path(str(job.checkpoints.dir), at.inside("checkpoints", table.entries["checkpoints"]))


def _check_handoff(job: Job, table: YamlMapping, at: At) -> None:
    """A trainer must learn where to save and what to resume, and say where it came back."""
    used = placeholders(job.trainer)
    if job.checkpoints is None:
        for name in ("save_dir", *RESUME_PLACEHOLDERS):
            if name in used:
                inner = at.inside("trainer", table.entries["trainer"])
                raise inner.error(f"uses {{{name}}}, but there is no checkpoints: {{dir: …}}")
        return
    inner = at.inside("checkpoints", table.entries["checkpoints"])
    if job.checkpoints.keep == 1:
        section = table.entries["checkpoints"]
        assert isinstance(section, YamlMapping)
        keep = inner.inside("keep", section.entries["keep"])
        raise keep.error("expected 0, or 2 and more: with one, nothing is left when it goes bad")
    has_paths = "save_dir" in used and any(name in used for name in RESUME_PLACEHOLDERS)
    if not has_paths and job.trainer.hook == "none" and job.checkpoints.handoff is None:
        raise inner.error(
            "the trainer is not told where to save and what to resume; write trainer.hook: "
            "torchtitan, or use {save_dir} and {resume_path} or {resume_step} in trainer.args, or "
            "write checkpoints.handoff: env if the trainer reads SUPERV_SAVE_DIR and "
            "SUPERV_RESUME_PATH"
        )
    if job.progress.resumed is None:
        inner = at.inside("progress", table.entries["progress"])
        raise inner.error(
            "needs resumed: with checkpoints, superv checks the step that a run comes back at"
        )
