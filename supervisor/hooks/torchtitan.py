"""TorchTitan 0.2.2 and 0.3.0: what superv sets in its configuration, and the hook in its ranks.

The agent gives a copy of this file to the ranks: standard library only.

Nothing is added to the command line. The hook sets fields of the configuration that TorchTitan has
parsed: one way for both versions, and for later ones, which are to have no flags. `folder` is
joined to the dump folder, so an absolute path stands as it is. It must not exist yet: TorchTitan
ignores `initial_load_path` where it does. Retention follows superv's lineage, so TorchTitan's own
purging is off.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PRELOAD = ("torch", "torchtitan.train")
# components/checkpoint.py, and checkpointer/base.py: the parts of its full training state
STATE_KEYS = ("model", "optimizer", "lr_scheduler", "train_state", "dataloader")
# components/metrics.py and train.py; " - " keeps "validate step:" out
STEP_LINE = r" - step:\s*(?P<step>\d+)\s+loss:\s*(?P<loss>\S+)"
RESUMED_LINE = r"Training starts at step (?P<next>\d+)"

# What a rank writes below its dump folder while it trains (0.3.0: 18 writes a step and rank, each
# flushed in the training thread; observability/structured_logger/jsonl_handler.py)
PER_STEP = "structured logs of every step"
# Runs in the trainer's Python: `args` → `read`, what superv doctor looks at.
READ_CONFIG = """
from torchtitan.config.manager import ConfigManager
config = ConfigManager().parse_args(args)
read = {
    "dump_folder": (config if hasattr(config, "dump_folder") else config.job).dump_folder,
    "per_step": bool(getattr(config.debug, "enable_structured_logging", False)),
    "interval": config.checkpoint.interval,
    "log_freq": config.metrics.log_freq,
}
"""
# What would load or save something else than the whole training state, in versions that have it.
ALWAYS = {"last_save_in_hf": False, "load_only": False}
RESUMED: dict[str, object] = {
    "initial_load_in_hf": False,
    "initial_load_in_hf_quantized": False,
    "load_step": -1,
    "exclude_from_loading": [],
}
# Where the hook enters, as a person finds it in TorchTitan's sources.
CONFIG, STEPS = "ConfigManager.parse_args", "GarbageCollection.run"
LOADS, SAVES = "CheckpointManager.load", "CheckpointManager.save"


def fields(save_dir: str, resume_path: str) -> dict[str, object]:
    """The fields of `config.checkpoint` that superv sets; without `resume_path` for a new start."""
    if not save_dir:
        return {}
    found: dict[str, object] = {
        "enable": True,
        "folder": save_dir,
        "keep_latest_k": 0,
        "last_save_model_only": False,
    }
    if resume_path:
        found |= {"initial_load_path": resume_path, "initial_load_model_only": False}
    return found


def overruled(args: Sequence[str]) -> list[str]:
    """Flags on a command line that have no effect: superv sets these fields."""
    names = {*fields("/", "/"), *ALWAYS, *RESUMED}
    flags = [arg.split("=", 1)[0] for arg in args if arg.startswith("--checkpoint.")]
    return [flag for flag in flags if _field(flag) in names or _field(flag)[3:] in names]


def dump_folder(args: Sequence[str]) -> str:
    """Where the ranks' own files go, as far as the command line says; else TorchTitan's default."""
    found = "outputs"  # ./outputs in both versions
    for number, arg in enumerate(args):
        name, equals, _ = arg.replace("-", "_").partition("=")
        if name in ("__dump_folder", "__job.dump_folder"):
            found = arg[len(name) + 1 :] if equals else "".join(args[number + 1 : number + 2])
    return found


def _field(flag: str) -> str:
    return flag.removeprefix("--checkpoint.").replace("-", "_")


def configure(config: Any, env: Mapping[str, str], args: Sequence[str]) -> list[str]:
    """Set what superv sets; returns what a person's own flags said otherwise.

    Raises RuntimeError where the configuration has no such field: it would train, and save where
    nobody looks.
    """
    if dump := env.get("SUPERV_DUMP_DIR", ""):
        where = config if hasattr(config, "dump_folder") else getattr(config, "job", None)
        _set(where, "dump_folder", dump)
    resume = env.get("SUPERV_RESUME_PATH", "")
    wanted = fields(env.get("SUPERV_SAVE_DIR", ""), str(Path(resume).absolute()) if resume else "")
    if not wanted:
        return []
    part: Any = getattr(config, "checkpoint", None)
    also = {**ALWAYS, **(RESUMED if resume else {})}
    wanted |= {name: value for name, value in also.items() if hasattr(part, name)}
    before = {name: getattr(part, name, None) for name in wanted}
    for name, value in wanted.items():
        _set(part, name, list(value) if isinstance(value, list) else value)
    if hasattr(part, "__post_init__"):
        part.__post_init__()
    said = []
    for flag in overruled(args):
        name = _field(flag) if _field(flag) in before else _field(flag)[3:]
        if name in before and before[name] != wanted[name]:
            said.append(f"{flag} has no effect: superv sets checkpoint.{name} to {wanted[name]!r}")
    return said


def _set(part: Any, name: str, value: object) -> None:
    if not hasattr(part, name):
        where = "" if name == "dump_folder" else "checkpoint."
        raise RuntimeError(
            f"superv: this TorchTitan's configuration has no {where}{name}, which superv sets: "
            "it stops before it trains"
        )
    setattr(part, name, value)


class Points:
    """Where the hook enters TorchTitan: found, and fired. What is amiss is said once."""

    def __init__(self, rank: Callable[[], Any]) -> None:
        self._rank = rank
        self._found: set[str] = set()
        self._fired: set[str] = set()
        self._expected: set[str] = set()

    def wrap(self, owner: Any, name: str, point: str, wrapper: Callable[[Any], Any]) -> None:
        """Put a wrapper around a method; where there is none, `expect` will say so."""
        inner = getattr(owner, name, None)
        if inner is not None:
            self._found.add(point)
            setattr(owner, name, functools.wraps(inner)(wrapper(inner)))

    def fire(self, point: str) -> Any:
        """The rank that it fires in; None where this process is none."""
        rank = self._rank()
        if rank is not None:
            self._fired.add(point)
        return rank

    def expect(self, *points: str) -> None:
        """By now these have fired, or never will."""
        for point in points:
            if point in self._fired or point in self._expected:
                continue
            self._expected.add(point)
            why = "was never called" if point in self._found else "was not found"
            self._rank().trouble(f"TorchTitan's {point} {why}: {LACKS[point]}")


LACKS = {
    CONFIG: "superv could not set where checkpoints are saved and what is resumed",
    STEPS: "steps are known from log lines alone",
    LOADS: "the time that loading takes is not known",
    SAVES: "saves and finished steps are known from log lines and checkpoints alone",
}


class Spans(logging.Handler):
    """TorchTitan's structured log (0.3 and later), as more detail of a phase: which span it is in.

    Records are made where the user's configuration wants them, and not for this.
    """

    def __init__(self, rank: Callable[[], Any]) -> None:
        super().__init__()
        self._rank = rank
        self._open: list[str] = []

    def createLock(self) -> None:
        """Of the main thread alone, so nothing is locked: a fork would find it held."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        rank, name = self._rank(), getattr(record, "log_type_name", "")
        if rank is None or record.threadName != "MainThread":
            return
        if getattr(record, "log_type", "") != "event" or not isinstance(name, str):
            return
        if name.endswith("_start"):
            self._open.append(name[:-6])
        elif name.endswith("_end") and name[:-4] in self._open:
            while self._open.pop() != name[:-4]:
                pass
        else:
            return
        rank.detail(self._open[-1] if self._open else "")


def patches(rank: Callable[[], Any]) -> dict[str, Callable[[Any], None]]:
    """What to change in TorchTitan's modules once they are imported.

    `torchtitan.train` runs as __main__, so its Trainer can't be patched; what it calls can: the
    collector's `run(step)` before each step, the checkpointer's `save(step)` after each one.
    """
    points = Points(rank)

    def manager(module: Any) -> None:
        parser = getattr(module, "ConfigManager", None)
        points.wrap(parser, "parse_args", CONFIG, lambda parse: _parsing(parse, points))

    def utils(module: Any) -> None:
        collector = getattr(module, "GarbageCollection", None)
        points.wrap(collector, "run", STEPS, lambda run: _stepping(run, points))

    def checkpointer(owner: Any) -> None:
        points.wrap(owner, "save", SAVES, lambda save: _saving(save, points))
        points.wrap(owner, "load", LOADS, lambda load: _loading(load, points))

    def older(module: Any) -> None:
        """0.3 keeps the name there for whoever imports it; the class is defined elsewhere."""
        owner = getattr(module, "CheckpointManager", None)
        if owner is not None and "save" in vars(owner):
            checkpointer(owner)

    def base(module: Any) -> None:
        checkpointer(getattr(module, "BaseCheckpointManager", None))

    def spans(module: Any) -> None:
        logging.getLogger("torchtitan.structured_logger").addHandler(Spans(rank))

    return {
        "torchtitan.config.manager": manager,
        "torchtitan.tools.utils": utils,
        "torchtitan.components.checkpoint": older,
        "torchtitan.components.checkpointer.base": base,
        "torchtitan.observability.structured_logger.structured_logging": spans,
    }


def _parsing(parse: Any, points: Points) -> Any:
    # 0.2.2's default is sys.argv as it was at import: a forked rank would train its parent's.
    def parse_args(self: Any, args: list[str] | None = None) -> Any:
        here = points.fire(CONFIG)
        if here is not None:
            here.phase("build")
        args = sys.argv[1:] if args is None else args
        parsed = parse(self, args)
        if here is not None:
            for text in configure(parsed, os.environ, args):
                here.say(text)
            steps = getattr(getattr(parsed, "training", None), "steps", None)
            if isinstance(steps, int):
                here.until(steps)
        return parsed

    return parse_args


def _stepping(run: Any, points: Points) -> Any:
    begun = -1  # the first step

    def run_at(self: Any, step_count: int) -> Any:
        nonlocal begun
        here = points.fire(STEPS)
        if here is not None:
            here.begin(step_count)
            if begun < 0:
                begun = step_count
                points.expect(CONFIG, LOADS)
            elif step_count == begun + 1:
                points.expect(SAVES)
        return run(self, step_count)

    return run_at


def _saving(save: Any, points: Points) -> Any:
    def save_at(self: Any, curr_step: int, last_step: bool = False) -> Any:
        here = points.fire(SAVES)
        if here is None:
            return save(self, curr_step, last_step)
        if curr_step > 0:  # at 0 it is a seed, and no step comes before it
            points.expect(CONFIG, STEPS)
        here.finished(curr_step)
        here.phase("save")
        try:
            return save(self, curr_step, last_step)
        finally:
            here.phase("done" if last_step else "step")

    return save_at


def _loading(load: Any, points: Points) -> Any:
    def load_from(self: Any, step: int = -1) -> Any:
        here = points.fire(LOADS)
        if here is not None:
            here.phase("load")
        return load(self, step)

    return load_from
