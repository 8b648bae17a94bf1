"""The trainer as it would run: its interpreter, its modules, its directories."""

from __future__ import annotations

import json
import os
from typing import Any

from healthchecks.frame.report import Finding
from supervisor import hooks, proc
from supervisor.config import Job
from supervisor.config.container import ContainerOf
from supervisor.core.container import RUNTIMES
from supervisor.doctor import before_launch, rank_zero
from supervisor.doctor.finding import fail, ok, unknown, warn
from supervisor.doctor.machine import LOCAL, file_system
from supervisor.engine.hook_notes import MOVE, on_network
from supervisor.host import procfs

RUNTIME_S = 20.0
IMPORT_S = 120.0  # torch and TorchTitan take 9 s where nothing is cached

# Runs in the trainer's python: prints one JSON line at its end, whatever modules print.
PROBE = """
import importlib, json, platform, sys
folder, reader, *modules = sys.argv[1:]
sys.path[0] = folder or ""
seen = {"python": platform.python_version(), "failed": {}, "modules": ", ".join(modules)}
for name in modules:
    try:
        importlib.import_module(name)
    except BaseException as error:
        seen["failed"][name] = [type(error).__name__, str(error).strip().split("\\n")[0][:200]]
try:
    import torch
    seen["torch"], seen["cuda"] = torch.__version__, torch.version.cuda
except ModuleNotFoundError:
    pass
except BaseException as error:
    seen["failed"].setdefault("torch", [type(error).__name__, str(error)[:200]])
if reader and not seen["failed"]:
    scope = json.loads(reader)
    try:
        exec(scope["code"], scope)
        seen["config"] = scope["read"]
    except BaseException as error:
        seen["unread"] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
print("\\n" + json.dumps(seen))
"""


def python_command(job: Job) -> list[str] | None:
    """What looks at the trainer's modules; None for a command, and for what is in an image."""
    trainer = job.trainer
    if trainer.command or job.container is not None:
        return None
    folder = str(trainer.script.parent) if trainer.script else ""
    modules = dict.fromkeys([*trainer.preload, *([trainer.module] if trainer.module else [])])
    reader = ""
    if trainer.hook != "none":
        code = hooks.ADAPTERS[trainer.hook].READ_CONFIG
        reader = json.dumps({"code": code, "args": trainer.args})
    return [trainer.python, "-c", PROBE, folder, reader, *modules]


async def look(job: Job, *, deadline_s: float = IMPORT_S) -> list[Finding]:
    """On this machine; a node may differ, which --probe tells."""
    found = await before_launch.look(job)
    told = {finding.check for finding in found}
    found += [one for one in await _directories(job) if one.check not in told]
    if "trainer" in told:
        return found  # what is not found can't be imported
    if job.container is not None:
        return [*found, await _runtime(job.container)]
    argv = python_command(job)
    if argv is None:
        return [*found, ok("trainer", f"{job.trainer.command[0]} is here")]
    cwd = str(job.trainer.workdir) if job.trainer.workdir.is_dir() else "/"
    done = await proc.run(argv, deadline_s=deadline_s, env=rank_zero.environment(job), cwd=cwd)
    return [*found, *judge("trainer", "here", done), *configuration(job, _printed(done))]


async def _runtime(container: ContainerOf) -> Finding:
    """Whether what starts containers is here, and does. What is in the image is not looked at."""
    check, program = "container", RUNTIMES[container.runtime].program
    asks = "--help" if container.runtime == "pyxis" else "version"
    if container.runtime == "apptainer":
        asks = "--version"
    done = await proc.run((program, asks), deadline_s=RUNTIME_S)
    if done.rc != 0:
        return unknown(check, f"{program} {asks}: {done.why()}", "see whether nodes have it")
    if container.runtime == "pyxis" and "--container-image" not in done.out:
        return fail(check, "srun has no --container-image: pyxis is not there", "ask the site")
    version = "srun has pyxis" if container.runtime == "pyxis" else done.out.strip()[:40]
    return ok(
        check, f"{container.runtime} is here ({version}); the image's content is not looked at"
    )


def configuration(job: Job, seen: dict[str, Any]) -> list[Finding]:
    """What the trainer's own configuration says, as far as it concerns superv."""
    if job.trainer.hook == "none" or seen.get("failed", True):
        return []
    check = job.trainer.hook
    if "config" not in seen:
        text = f"its configuration can't be read here: {seen.get('unread', 'nothing was said')}"
        return [unknown(check, text, "see whether trainer.args are what the trainer takes")]
    found, read = [], seen["config"]
    if job.checkpoints is not None and read["interval"] % read["log_freq"]:
        text = (
            f"the loss is looked at every {read['log_freq']} steps and saved every "
            f"{read['interval']}: what is saved between a look and a loss of NaN is not resumed"
        )
        found.append(warn(check, text, "let metrics.log_freq divide checkpoint.interval"))
    place = job.trainer.dump_dir or job.trainer.workdir / read["dump_folder"]
    _, kind, _ = procfs.mount_of(str(place))
    if read["per_step"] and on_network(kind):
        hook = hooks.ADAPTERS[job.trainer.hook]
        found.append(warn(check, f"ranks write {hook.PER_STEP} below {place}, on {kind}", MOVE))
    return found or [ok(check, "its configuration suits superv")]


async def _directories(job: Job) -> list[Finding]:
    found = []
    wanted = {"workdir": job.trainer.workdir}
    if job.checkpoints is not None:
        wanted["checkpoints"] = job.checkpoints.dir
    for check, path in wanted.items():
        seen = await file_system(path)
        if isinstance(seen, str):
            found.append(unknown(check, seen, "see whether that storage answers"))
        elif not os.access(seen.path, os.W_OK | os.X_OK) and check == "checkpoints":
            prefix = "" if seen.path == path else f"{path} can't be made: "
            fix = "choose another checkpoints.dir, or fix the folder's mode"
            found.append(fail(check, f"{prefix}{seen.path} can't be written by you", fix))
        elif seen.kind in LOCAL and job.on_slurm:
            text = f"{path} is on {seen.kind}: nodes see it only if it is exported to them"
            found.append(warn(check, text, "use storage that all nodes share"))
        else:
            found.append(ok(check, f"{path} ({seen.kind}, {seen.free_mb // 1000} GB free)"))
    return found


def judge(check: str, where: str, done: proc.Completed) -> list[Finding]:
    """What PROBE has printed."""
    if done.timed_out:
        text = f"its modules were not imported {where} within {done.took_s:.0f} s"
        return [unknown(check, text, "see whether the storage that holds them answers")]
    if not (seen := _printed(done)):
        return [fail(check, f"{where}: {done.why()}", "fix trainer.python or its environment")]
    return [verdict(check, where, seen)]


def _printed(done: proc.Completed) -> dict[str, Any]:
    """The last line; empty where there is none such."""
    return rank_zero.told(done.out)


def verdict(check: str, where: str, seen: dict[str, object]) -> Finding:
    """What PROBE found."""
    text = f"{where}: Python {seen['python']}, "
    text += f"torch {seen['torch']}" if "torch" in seen else "no torch"
    text += f" for CUDA {seen['cuda']}" if seen.get("cuda") else ""
    failed = seen["failed"]
    assert isinstance(failed, dict)
    if not failed:
        names = seen["modules"]
        return ok(check, f"{text}; {names} can be imported" if names else text)
    name, (kind, words) = next(iter(failed.items()))
    says = f"{text}; importing {name}: {kind}: {words}"
    if kind in ("ModuleNotFoundError", "SyntaxError"):
        return fail(check, says, "install it there, or fix trainer.module, preload or python")
    return warn(check, says, "a login node may lack a GPU; --probe looks on a node")
