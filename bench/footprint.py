"""What engine and agents cost while the ranks run."""

from __future__ import annotations

import time
from statistics import fmean, median

import psutil

from bench.lab_run import LabRun
from bench.samples import BenchColumn, Sample

WATCHED_S = 30.0

COLUMNS = (
    BenchColumn(key="engine_rss", title="engine: resident", unit="MB"),
    BenchColumn(key="engine_cpu", title="engine: of a core", unit="%"),
    BenchColumn(key="agent_rss", title="agent: resident, the largest", unit="MB"),
    BenchColumn(key="agent_rss_median", title="agent: resident, median", unit="MB"),
    BenchColumn(key="agent_cpu", title="agent: of a core, mean", unit="%"),
    BenchColumn(key="agent_cpu_most", title="agent: of a core, the busiest", unit="%"),
)


def memory_mb(pid: int) -> float:
    """Resident set of a process in MB."""
    return float(psutil.Process(pid).memory_info().rss) / 1e6


def cpu_s(pid: int) -> float:
    """Processor time of a process so far."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


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
