"""TorchTitan 0.2.x: its command-line flags for checkpoints, and the hook inside its ranks.

The agent gives a copy of this file to the ranks: standard library only.

`checkpoint.folder` is joined to the dump folder with os.path.join, so an absolute path stands as it
is. The folder must not exist yet: TorchTitan ignores `initial_load_path` where it does. Retention
follows superv's lineage, so TorchTitan's own purging is off (components/checkpoint.py).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

FRESH = (
    "--checkpoint.enable",
    "--checkpoint.folder",
    "{save_dir}",
    "--checkpoint.keep_latest_k",
    "0",
    "--checkpoint.no_last_save_model_only",
)
RESUMED = (
    *FRESH,
    "--checkpoint.initial_load_path",
    "{resume_path}",
    "--checkpoint.no_initial_load_model_only",
)


PRELOAD = ("torch", "torchtitan.train")
# components/checkpoint.py: the parts of its full training state
STATE_KEYS = ("model", "optimizer", "lr_scheduler", "train_state", "dataloader")
# components/metrics.py and train.py; " - " keeps "validate step:" out
STEP_LINE = r" - step:\s*(?P<step>\d+)\s+loss:\s*(?P<loss>\S+)"
RESUMED_LINE = r"Training starts at step (?P<next>\d+)"


def patches(rank: Callable[[], Any]) -> dict[str, Callable[[Any], None]]:
    """What to change in TorchTitan's modules once they are imported.

    `torchtitan.train` runs as __main__, so its Trainer can't be patched; what it calls can: the
    collector's `run(step)` before each step, the checkpointer's `save(step)` after each one.
    """

    def config(module: Any) -> None:
        parse = module.ConfigManager.parse_args

        # Its default is sys.argv as it was at import: a forked rank would train its parent's.
        @functools.wraps(parse)
        def parse_args(self: Any, args: list[str] | None = None) -> Any:
            if rank() is not None:
                rank().phase("build")
            return parse(self, sys.argv[1:] if args is None else args)

        module.ConfigManager.parse_args = parse_args

    def collector(module: Any) -> None:
        run = module.GarbageCollection.run

        @functools.wraps(run)
        def run_at(self: Any, step_count: int) -> Any:
            if rank() is not None:
                rank().begin(step_count)
            return run(self, step_count)

        module.GarbageCollection.run = run_at

    def checkpointer(module: Any) -> None:
        save, load = module.CheckpointManager.save, module.CheckpointManager.load

        @functools.wraps(save)
        def save_at(self: Any, curr_step: int, last_step: bool = False) -> Any:
            if rank() is None:
                return save(self, curr_step, last_step)
            rank().finished(curr_step)
            rank().phase("save")
            try:
                return save(self, curr_step, last_step)
            finally:
                rank().phase("done" if last_step else "step")

        @functools.wraps(load)
        def load_from(self: Any, step: int = -1) -> Any:
            if rank() is not None:
                rank().phase("load")
            return load(self, step)

        module.CheckpointManager.save = save_at
        module.CheckpointManager.load = load_from

    return {
        "torchtitan.config.manager": config,
        "torchtitan.tools.utils": collector,
        "torchtitan.components.checkpoint": checkpointer,
    }
