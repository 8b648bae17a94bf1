"""Health checks of the libraries that the job loads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from healthchecks.frame.check import Findings, Result, Skip, Status, check
from healthchecks.frame.context import Ctx
from healthchecks.sources import topology
from supervisor.core.setting import About
from supervisor.host import trusted

_NAME = "libnccl.so.2"
_SYSTEM = ("usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib64", "usr/local/lib")
_FIX = "reinstall the environment (pip install --force-reinstall), or look at its file system"


@check(
    "cuda.libs",
    tags={"preflight"},
    resource="libraries",
    deadline_s=10.0,
    timeout_fix="the file system that holds the trainer's environment does not answer: see "
    "nfs.alive",
    cohort=Status.FAIL,
    by_users=True,
    untested="no GPU: NCCL's own library was not loaded",
)
def cuda_libs(
    ctx: Ctx,
    *,
    python: Annotated[
        str, About(doc="The trainer's Python, whose NVIDIA packages are looked at.")
    ] = "",
    nccl: Annotated[str, About(doc="NCCL's library, where it is not among those.")] = "",
    version: Annotated[
        str, About(doc="NCCL's version, as 2.28.9; empty: that of the other nodes.")
    ] = "",
) -> Result:
    """The NCCL library of the job is whole, can be loaded, and is of one version everywhere.

    Nodes that differ in it end in `Mismatched NCCL version`; a library of 0 bytes was seen in a
    shared environment (nebius/soperator#2684), so all of NVIDIA's packages are looked at. The
    driver's version is that of `versions`.
    """
    topology.hardware(ctx)
    found = Findings()
    site = _site_packages(ctx, python) if python else None
    if python and site is None:
        found.fail(
            f"{python} has no site-packages",
            expected="an environment",
            fix=f"see whether {python} is there, and its file system mounted",
        )
        return found.result("")
    libraries = _libraries(ctx, site) if site else []
    hollow = [path for path in libraries if ctx.path(path).stat().st_size == 0]
    if hollow:
        found.fail(
            f"{len(hollow)} of {len(libraries)} libraries are empty, as {hollow[0]}",
            expected="no library of 0 bytes",
            fix=_FIX,
        )
    path = _nccl(ctx, nccl, site)
    if path not in hollow:
        _load(ctx, found, path, version)
    return found.result(f"NCCL {found.facts.get('nccl', '')}, {path}")


def _site_packages(ctx: Ctx, python: str) -> str | None:
    prefix = os.fspath(Path(python).parent.parent)  # a venv's python is a link: it is not followed
    for name in reversed(ctx.names(f"{prefix}/lib")):
        at = f"{prefix}/lib/{name}/site-packages"
        if name.startswith("python") and ctx.path(at).is_dir():
            return at
    return None


def _libraries(ctx: Ctx, site: str) -> list[str]:
    """Shared libraries of NVIDIA's packages."""
    found = []
    for package in ctx.names(f"{site}/nvidia"):
        at = f"{site}/nvidia/{package}/lib"
        found += [f"{at}/{name}" for name in ctx.names(at) if ".so" in name]
    return found


def _nccl(ctx: Ctx, given: str, site: str | None) -> str:
    """Raises Skip where none is configured and none is in the system's folders."""
    if given:
        return given
    folders = [f"{site}/nvidia/nccl/lib"] if site else [*_SYSTEM]
    for folder in folders:
        if ctx.path(f"{folder}/{_NAME}").exists():
            return f"{folder}/{_NAME}"
    if site:
        raise Skip(f"no nvidia/nccl in {site} (torch may be built with its own)")
    raise Skip("no NCCL library is configured (cuda.libs.python, the trainer's) or in /usr")


def _load(ctx: Ctx, found: Findings, path: str, version: str) -> None:
    import ctypes

    file = ctx.path(path)
    if not file.exists():
        found.fail(f"{path} is not there", expected="NCCL's library", fix=_FIX)
        return
    if file.stat().st_size == 0:
        found.fail(f"{path} is empty", expected="NCCL's library", fix=_FIX)
        return
    if why := trusted.library(os.fspath(file), os.environ):
        found.unknown(
            f"{path} is not loaded as root: {why}",
            expected="what only root can change, or a user who checks his own",
            fix="let a run's agents check it (they are the user), or install it where only root "
            "may write",
        )
        return
    ctx.announce(f"dlopen {path}")
    try:
        code = ctypes.c_int()
        rc = ctypes.CDLL(os.fspath(file)).ncclGetVersion(ctypes.byref(code))
    except (OSError, AttributeError) as error:
        found.fail(f"{path} can't be loaded: {error}", expected="NCCL's library", fix=_FIX)
        return
    if rc != 0:
        found.unknown(f"{path}: ncclGetVersion returned {rc}")
        return
    major, rest = divmod(code.value, 10_000)  # ncclGetVersion: 2.28.3 is 22803
    seen = f"{major}.{rest // 100}.{rest % 100}"
    found.fact("nccl", seen)
    if version and seen != version:
        found.fail(
            f"NCCL {seen}, {path}",
            expected=f"NCCL {version}",
            fix="give the job the same environment on all nodes; see LD_LIBRARY_PATH",
        )
