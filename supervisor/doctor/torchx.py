"""Whether the site's torchx can be asked to submit, where the job says so."""

from __future__ import annotations

from healthchecks.frame.report import Finding
from supervisor import proc
from supervisor.config import Job, Site
from supervisor.doctor.finding import fail, ok, unknown, warn

ASK_S = 60.0  # as a submission has
TRIED = "0.7."
_FIX = "name the Python of an environment with torchx 0.7 (docs/torchx.md)"


async def look(job: Job | None, site: Site) -> list[Finding]:
    """Nothing where TorchX is not asked for."""
    check = "torchx"
    if job is None or job.torchx is None:
        return []
    if site.torchx_python is None:
        return [fail(check, "site.yaml: torchx_python is missing", _FIX)]
    code = "import torchx.schedulers, torchx; print(torchx.__version__)"
    done = await proc.run((site.torchx_python, "-I", "-c", code), deadline_s=ASK_S)
    if done.timed_out:
        return [unknown(check, done.why(), "see whether its storage answers")]
    if done.rc != 0:
        return [fail(check, f"torchx_python: {site.torchx_python}: {done.why()}", _FIX)]
    version = done.out.strip()
    if not version.startswith(TRIED):
        return [warn(check, f"version {version} was not tried", "use torchx 0.7.0 where it fails")]
    return [ok(check, f"version {version}, in {site.torchx_python}")]
