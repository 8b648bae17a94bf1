"""TorchTitan 0.2.x: its command-line flags for checkpoints.

`checkpoint.folder` is joined to the dump folder with os.path.join, so an absolute path stands as it
is. The folder must not exist yet: TorchTitan ignores `initial_load_path` where it does. Retention
follows superv's lineage, so TorchTitan's own purging is off (components/checkpoint.py).
"""

from __future__ import annotations

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
