"""The JSON document of docs/report.md."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from supervisor.report.model import SCHEMA, Page, Trend


def document(page: Page) -> dict[str, Any]:
    """Plain values only: the fields of the model, but of the plots only who stands out."""
    rest = asdict(page)
    trends = [_trend(trend) for trend in page.trends]
    verdict = {**rest.pop("verdict"), "usable": page.verdict.usable, "nodes": page.verdict.nodes}
    return {"schema": SCHEMA, "verdict": verdict, **rest, "trends": trends}


def _trend(trend: Trend) -> dict[str, Any]:
    told = asdict(trend)
    del told["rest"]
    return told
