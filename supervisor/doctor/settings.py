"""job.yaml and site.yaml themselves: every mistake in them, and names that are old."""

from __future__ import annotations

from collections.abc import Sequence

from healthchecks.frame.report import Finding
from supervisor.config import Job, Site
from supervisor.core.errors import UserError, told
from supervisor.doctor.finding import fail, warn
from supervisor.engine.wiring import suites

CHECK = "config"


def look(job: Job | None, site: Site, wrong: Sequence[UserError]) -> list[Finding]:
    """A finding for each; settings of health checks are held against the checks."""
    from healthchecks.frame.settings import of_site

    mistakes = list(wrong)
    try:
        if job is None:
            of_site(site)
        else:
            suites(job, site)
    except UserError as error:
        mistakes += told(error)
    found = [fail(CHECK, str(error), "correct it in that file") for error in mistakes]
    notes = (*(job.notes if job else ()), *site.notes)
    return found + [warn(CHECK, note, "write the new name") for note in notes]
