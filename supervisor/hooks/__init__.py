"""Adapters to trainers, one file each: what superv knows of the trainer, and the hook in the ranks.

An adapter is a module with PRELOAD (modules of the warm starter), STEP_LINE and RESUMED_LINE
(patterns of its log), STATE_KEYS (what a whole checkpoint holds), `fields(save_dir, resume_path)`
(what it sets in the trainer's configuration), `overruled(args)` (flags that this leaves without
effect), PER_STEP and `dump_folder(args)` (what ranks write as they train, and where), READ_CONFIG
(reads the trainer's configuration), and `patches(rank)`.
"""

from collections.abc import Mapping
from types import ModuleType

from supervisor.hooks import torchtitan

ADAPTERS: Mapping[str, ModuleType] = {"torchtitan": torchtitan}
