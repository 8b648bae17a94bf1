"""The JSON document of docs/report-json.md."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from supervisor.report.model import SCHEMA, Page, Trend

# Keys that scripts read under the name of schema 1, whatever the field is called today.
KEYS = {"action_items": "hands", "healthy": "fine", "all_zero": "quiet"}


def document(page: Page) -> dict[str, Any]:
    """Plain values only: the fields of the model, but of the plots only who stands out."""
    values = {KEYS.get(name, name): value for name, value in asdict(page).items()}
    values["trends"] = [_trend(trend) for trend in page.trends]
    if page.run is not None:
        del values["run"]["curve"]  # the journal has it
    values["verdict"] |= {"usable": page.verdict.usable, "nodes": page.verdict.nodes}
    return {"schema": SCHEMA, **values}


def _trend(trend: Trend) -> dict[str, Any]:
    values = asdict(trend)
    del values["rest"]
    return values
