"""Sick, in other words: what is dead is found, however a kernel, driver, tool or vendor puts it.

For each check at least three wordings or shapes, each with where it is from. To add one: a row.
"""

from __future__ import annotations

from collections.abc import Sequence

from checks import Case
from sick_accel import ACCEL
from sick_buses import BUSES
from sick_drivers import DRIVERS
from sick_gpu import NVML
from sick_log import LOG
from sick_node import TREE
from sick_ports import PORTS
from sick_tools import TOOLS

CASES: Sequence[Case] = [*LOG, *PORTS, *TOOLS, *TREE, *NVML, *ACCEL, *BUSES, *DRIVERS]
