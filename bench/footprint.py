"""What engine and agents cost while the ranks run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import fmean, median

from bench.lab_run import LabRun
from bench.samples import Column, Sample

WATCHED_S = 30.0

COLUMNS = (
    Column(key="engine_rss", title="engine: resident", unit="MB"),
    Column(key="engine_cpu", title="engine: of a core", unit="%"),
    Column(key="agent_rss", title="agent: resident, the largest", unit="MB"),
    Column(key="agent_rss_median", title="agent: resident, median", unit="MB"),
    Column(key="agent_cpu", title="agent: of a core, mean", unit="%"),
    Column(key="agent_cpu_most", title="agent: of a core, the busiest", unit="%"),
)


def memory_mb(pid: int) -> float:
    """Resident set of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"{pid}: no VmRSS")


def cpu_s(pid: int) -> float:
    """Processor time of a process so far: fields 14 and 15 of /proc/PID/stat, see proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def footprint(training: LabRun, case: str) -> Sample:
    """Memory and processor time of the engine and of every agent, without starters and ranks."""
    agents, engine = training.agents(), training.engine()
    before = {pid: cpu_s(pid) for pid in (*agents.values(), engine)}
    began = time.monotonic()
    time.sleep(WATCHED_S)
    took = time.monotonic() - began
    share = {pid: 100 * (cpu_s(pid) - spent) / took for pid, spent in before.items()}
    memory = [memory_mb(pid) for pid in agents.values()]
    used = [share[pid] for pid in agents.values()]
    return Sample(
        case=case,
        values={
            "engine_rss": memory_mb(engine),
            "engine_cpu": share[engine],
            "agent_rss": max(memory),
            "agent_rss_median": median(memory),
            "agent_cpu": fmean(used),
            "agent_cpu_most": max(used),
        },
        more={"agents": len(agents)},
    )
