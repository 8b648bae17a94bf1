"""The makers whose accelerators are known here."""

from __future__ import annotations

from collections.abc import Sequence

from healthchecks.accelerators.amd import Amd
from healthchecks.accelerators.nvidia import Nvidia
from healthchecks.accelerators.port import AcceleratorMaker, WatchedMaker

WATCHED: Sequence[WatchedMaker] = (Amd(),)
EVERY: Sequence[AcceleratorMaker] = (Nvidia(), *WATCHED)
