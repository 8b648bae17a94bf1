"""Slurm of other releases, for labs: Debian's packages, fetched and unpacked, never installed.

apt resolves what Slurm needs, down to its libc, from one suite and with a state of its own: the
machine's sources, lists and packages are not touched, and what comes out does not depend on them.
Debian's signature is checked. What was unpacked is kept for the labs after.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from supervisor import proc
from supervisor.core.errors import UserError
from supervisor.host import trusted

CACHE = Path("/var/cache/superv-lab")  # root's alone; removing it costs the next lab a download
# Slurm's releases and the suites that carry them (packages.debian.org, slurm-wlm). Suites move on:
# what a suite has is looked at before anything is fetched.
SUITES = {"24.11": "trixie", "26.05": "forky"}
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR = "http://deb.debian.org/debian"
FETCH_S = 300.0
LOCK_S = 600.0  # another lab fetches the same

_SOURCES = "Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\nSigned-By: {keyring}\n"
# The status is empty: everything that is needed counts as missing. Hooks are the machine's own.
_CONF = """\
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Install-Pkgs;
#clear DPkg::Post-Invoke;
Dir::Etc::sourcelist "{dir}/lab.sources";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State::lists "{dir}/lists";
Dir::State::status "{dir}/status";
Dir::State::extended_states "{dir}/extended_states";
Dir::Cache "{dir}/cache";
Dir::Log "{dir}";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
APT::Get::AllowUnauthenticated "false";
APT::Install-Recommends "false";
Acquire::AllowInsecureRepositories "false";
Acquire::Retries "1";
Acquire::http::Timeout "15";
"""


class UnavailableError(UserError):
    """This Slurm can't be had here at the moment: no network, no such package, no Debian."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedSlurm:
    """A Slurm and all that it needs, as a tree of files."""

    version: str  # 24.11
    package: str  # 24.11.5-4
    suite: str
    tree: Path

    @property
    def text(self) -> str:
        return f"Slurm {self.package} of Debian {self.suite}"

    @property
    def plugins(self) -> list[Path]:
        """Folders that must not be mixed with the machine's: plugins of another release."""
        return sorted(self.tree.glob("usr/lib/*/slurm-wlm"))


def get(version: str, cache: Path = CACHE) -> UnpackedSlurm:
    """The Slurm of a release, fetched and unpacked where that was not done before.

    Raises:
        UserError: no suite is known for this release, or the cache is not root's alone.
        UnavailableError: it could not be fetched.
    """
    if version not in SUITES:
        raise UserError(
            f"--slurm {version}: valid are {', '.join(SUITES)}; "
            "without --slurm a lab runs the machine's own"
        )
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    if why := trusted.problem(cache):
        raise UserError(f"what Slurm is unpacked to: {why}")
    with _locked(cache / f"{version}.lock", version):
        if (there := _there(cache / version)) is None:
            new = cache / f"{version}.new"
            shutil.rmtree(new, ignore_errors=True)
            try:
                _make(version, new)
            finally:
                shutil.rmtree(new, ignore_errors=True)
            there = _there(cache / version)
    assert there is not None
    return there


def of_machine() -> str:
    """The machine's own Slurm, by what its slurmctld says."""
    words = proc.run_sync(["slurmctld", "-V"], deadline_s=10).out.split()
    return f"Slurm {words[-1]} of this machine" if words else "this machine's Slurm"


def _there(folder: Path) -> UnpackedSlurm | None:
    try:
        found = json.loads((folder / "slurm.json").read_text())
    except FileNotFoundError:
        return None
    return UnpackedSlurm(version=folder.name, tree=folder / "tree", **found)


@contextlib.contextmanager
def _locked(path: Path, version: str) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        end = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise UnavailableError(
                        f"Slurm {version} is being fetched by another command for {LOCK_S:.0f} s; "
                        f"see who holds {path}"
                    ) from None
            time.sleep(0.1)
        yield
    finally:
        os.close(fd)


def _make(version: str, new: Path) -> None:
    """Fetch and unpack into `new`, which becomes what is kept in one step, once it is whole."""
    suite = SUITES[version]
    if not KEYRING.exists():
        raise UnavailableError(
            f"Slurm {version} comes from Debian {suite}, and Debian's keys are not here ({KEYRING})"
        )
    apt = new / "apt"
    for folder in ("lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "lab.sources").write_text(
        _SOURCES.format(mirror=_mirror(), suite=suite, keyring=KEYRING)
    )
    conf = apt / "apt.conf"
    conf.write_text(_CONF.format(dir=apt))
    what = f"Slurm {version} of Debian {suite} can't be fetched"
    _apt(what, "apt-get", f"--config-file={conf}", "--quiet", "update")
    shown = _apt(what, "apt-cache", f"--config-file={conf}", "show", "--no-all-versions", "slurmd")
    package = next(
        line.partition(": ")[2] for line in shown.splitlines() if line.startswith("Version: ")
    ).rpartition(":")[2]
    if not package.startswith(f"{version}."):
        raise UnavailableError(f"Debian {suite} has Slurm {package} now, no longer {version}")
    wanted = ("--quiet", "--yes", "--download-only", "install", *PACKAGES)
    _apt(what, "apt-get", f"--config-file={conf}", *wanted)
    tree = new / "tree"
    tree.mkdir()
    for deb in sorted((apt / "cache/archives").glob("*.deb")):
        _apt(f"{deb.name} can't be unpacked", "dpkg-deb", "--extract", str(deb), str(tree))
    if odd := {entry.name for entry in tree.iterdir()} - {"usr", "etc", "var", "run"}:
        raise UnavailableError(f"Debian {suite} has files below /{odd.pop()}: no lab knows how")
    shutil.rmtree(apt)
    (new / "slurm.json").write_text(json.dumps({"package": package, "suite": suite}) + "\n")
    new.replace(new.with_name(version))


def _mirror() -> str:
    """The one that the machine's own sources name for Debian."""
    argv = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    done = proc.run_sync(argv, deadline_s=20)
    named = [uri.rstrip("/") for uri in done.out.split()]
    return next((uri for uri in named if uri.endswith("/debian")), MIRROR)


def _apt(what: str, *argv: str) -> str:
    env = {"PATH": trusted.search_path(os.environ)[0], "LC_ALL": "C.UTF-8"}
    env |= {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy")}
    done = proc.run_sync(argv, deadline_s=FETCH_S, env=env)
    if done.rc != 0:
        raise UnavailableError(f"{what}: {done.why()}")
    return done.out
