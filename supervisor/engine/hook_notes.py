"""What a person should hear at a launch of what the trainer's hook overrules and leaves."""

from __future__ import annotations

from healthchecks.sources.mounts import LOCAL_FUSE, NETWORK
from supervisor import hooks
from supervisor.config import Job
from supervisor.host import procfs


def hook_notes(job: Job) -> tuple[str, ...]:
    """A line each: flags without effect, and files of every step that lie on shared storage.

    By the job's text and the mount table alone: nothing is touched, and nothing imported.
    """
    trainer = job.trainer
    if trainer.hook == "none":
        return ()
    hook = hooks.ADAPTERS[trainer.hook]
    notes = []
    if job.checkpoints is not None and (flags := hook.overruled(trainer.args)):
        notes.append(f"trainer.args: {', '.join(flags)}: no effect, superv sets these fields")
    key, place = "trainer.dump_dir", trainer.dump_dir
    if place is None:
        key, place = "trainer", trainer.workdir / hook.dump_folder(trainer.args)
    _, kind, _ = procfs.mount_of(str(place))
    if on_network(kind):
        notes.append(f"{key}: ranks write {hook.PER_STEP} below {place}, on {kind}; {MOVE}")
    return tuple(notes)


MOVE = "a step waits where that hangs: set trainer.dump_dir to a folder on the nodes' own disks"


def on_network(kind: str) -> bool:
    """Whether a mount of this type is storage that nodes share."""
    return kind in NETWORK or (kind.startswith("fuse.") and kind not in LOCAL_FUSE)
