"""NVIDIA's own diagnostic, where DCGM is installed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from healthchecks.frame.check import Findings, NoTool, Result, Skip, Status, Unknown, check
from healthchecks.frame.context import Ctx
from healthchecks.sources import nvml
from supervisor.core.setting import About

# dcgmErrorSeverity_enum of DCGM's dcgm_errors.h
_SEVERITIES = {1: "monitor", 2: "isolate", 4: "triage", 5: "configuration", 6: "reset"}
_FAILS = {
    2: "exclude the node and have the GPU replaced",
    6: "end all processes on the GPU and reset it: nvidia-smi --gpu-reset -i N; else reboot",
}


_NO_DCGM = NoTool(
    "dcgmi is not installed",
    "install datacenter-gpu-manager",
    "DCGM's own look at the software and the GPUs was not taken",
)


@check(
    "dcgm.diag",
    tags={"deep"},
    resource="gpu-load",
    deadline_s=120.0,
    timeout_fix="end dcgmi; restart nv-hostengine (systemctl restart nvidia-dcgm); look for Xids",
    untested="no GPU: built against the JSON of `dcgmi diag` in DCGM's user guide and source",
)
def dcgm_diag(
    ctx: Ctx,
    *,
    deadline_s: Annotated[float, About(doc="For dcgmi.", unit="s", ge=1, le=110)] = 100.0,
) -> Result:
    """`dcgmi diag -r 1` finds nothing: DCGM's quick look at the software and the GPUs.

    Level 2 hangs on B200 (NVIDIA/DCGM#247) and is never used. An error of severity isolate or reset
    is a FAIL, as is a failed test without one; triage, configuration and monitor are a WARN (DCGM
    User Guide, "Automating responses to DCGM diagnostic failures").
    """
    if not nvml.on_bus(ctx):
        raise Skip("no NVIDIA GPU is on the PCI bus")
    done = ctx.command("dcgmi", "diag", "-r", "1", "-j", deadline_s=deadline_s, lacking=_NO_DCGM)
    try:
        document = json.loads(done.out[done.out.index("{") :])  # warnings may come first
    except ValueError:
        raise Unknown(done.why()) from None
    found, passed = Findings(), 0
    try:
        for test, summary in _tests(document):
            results = [r for r in test.get("results") or [] if isinstance(r, dict)]
            told = {text for r in results for text, _ in _warnings(r)}
            left = [row for row in _warnings(summary) if row[0] not in told]
            for result in results:
                status = _status(result)
                passed += status == "pass"
                if status in ("fail", "warn") and (_warnings(result) or not left):
                    _judge(found, str(test["name"]), result, failed=status == "fail")
            if left:  # of no GPU: they stand in the summary alone
                _judge(
                    found, str(test["name"]), summary, failed=_status(summary) == "fail", rows=left
                )
    except (AttributeError, TypeError, KeyError) as error:
        raise Unknown(f"dcgmi's answer is of another form: {error!r}") from error
    if not passed and not found.result("").devices and found.result("").status is Status.OK:
        raise Unknown("dcgmi ran no test")
    return found.result(f"{passed} tests passed")


def _tests(document: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each test, and its summary. DCGM 3 and 4 differ in the outermost key; since 4 each test has a
    `test_summary` with all its errors, also those that are of no GPU (dcgmi/Diag.cpp)."""
    for outer in document.values():
        if not isinstance(outer, dict):
            continue
        for category in outer.get("test_categories", []):
            for test in category["tests"]:
                yield test, test.get("test_summary") or {}


def _status(result: dict[str, Any]) -> str:
    return str(result.get("status", "")).lower()


def _judge(
    found: Findings,
    name: str,
    result: dict[str, Any],
    *,
    failed: bool,
    rows: list[tuple[str, int]] | None = None,
) -> None:
    device = _device(result)
    for text, severity in rows or _errors(result):
        fails = severity in _FAILS or (failed and severity not in _SEVERITIES)
        word = _SEVERITIES.get(severity, "")
        found.add(
            Status.FAIL if fails else Status.WARN,
            f"{name}: {text}" + (f" ({word})" if word else ""),
            expected="pass",
            fix=_FAILS.get(severity, "see DCGM's user guide for this test; run it again"),
            device=device,
        )


def _device(result: dict[str, Any]) -> str:
    """What a result is of: since DCGM 4 also a CPU, a core, an NVSwitch (entity_group)."""
    gpu = result.get("gpu_id", result.get("gpu_ids"))
    number = result.get("entity_id", "") if gpu is None else gpu
    kind = "gpu" if gpu is not None else str(result.get("entity_group") or "gpu").lower()
    return f"{kind}{number}" if str(number).isdigit() else ""


def _errors(result: dict[str, Any]) -> list[tuple[str, int]]:
    """Texts with their severities, 0 where it has none; at least one."""
    if found := _warnings(result):
        return found
    info = result.get("info") or "failed"
    text = "; ".join(map(str, info)) if isinstance(info, list) else str(info)
    return [(text, int(result.get("error_severity") or 0))]


def _warnings(result: dict[str, Any]) -> list[tuple[str, int]]:
    rows = result.get("warnings") or []
    found = []
    for row in rows if isinstance(rows, list) else [rows]:
        if isinstance(row, dict):
            severity = row.get("error_severity", result.get("error_severity", 0))
            found.append((str(row.get("warning", "")), int(severity or 0)))
        else:
            found.append((str(row), int(result.get("error_severity") or 0)))
    return found
