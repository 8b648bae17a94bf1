"""What torch makes of each metadata file: `python torch_loads.py CHECKPOINT FILE…`; run by torch's.

Prints a line for each: its name, and what torch raised, or nothing where it loaded all of it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import warnings

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

warnings.simplefilter("ignore")
checkpoint, *files = sys.argv[1:]
with tempfile.TemporaryDirectory() as there:
    step = shutil.copytree(checkpoint, os.path.join(there, "step-5"))
    for file in files:
        shutil.copyfile(file, os.path.join(step, ".metadata"))
        error = ""
        try:
            _load_state_dict(
                {},
                storage_reader=FileSystemReader(step),
                planner=_EmptyStateDictLoadPlanner(),
                no_dist=True,
            )
        except BaseException as raised:
            first = next(iter(getattr(raised, "failures", {0: (raised,)}).values()))[0]
            error = " ".join(f"{type(first).__name__}: {first}".split())[:300]
        print(os.path.basename(file), error)
