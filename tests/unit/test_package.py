"""What is shipped, under which licence, and which versions of what it stands on."""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPO = Path(__file__).resolve().parents[2]
PACKAGES = ("healthchecks", "lab", "launchers", "ncclconf", "sbatch_templates", "supervisor")
NAMESPACES = ("torchx_plugins",)  # others put modules there, too: it has no files of its own
LOCKS = ("runtime", "dev")
RENEW = "run: make lock"


def wanted(extra: str = "") -> list[Requirement]:
    """What setup.cfg asks for."""
    config = configparser.ConfigParser()
    config.read(REPO / "setup.cfg")
    lines = config["options"]["install_requires"].splitlines()
    lines += config["options.extras_require"][extra].splitlines() if extra else []
    return [Requirement(line) for line in lines if line]


def locked(name: str) -> dict[str, tuple[Version, list[str]]]:
    """Version and hashes by distribution, of requirements/NAME.txt."""
    text = (REPO / "requirements" / f"{name}.txt").read_text()
    rows = text.replace("\\\n", " ").splitlines()
    lines = [row for row in rows if row.strip() and not row.startswith("#")]
    found = {}
    for line in lines:
        pin, *hashes = line.split()
        made = re.fullmatch(r"([\w.-]+)==([\w.+!]+)", pin)
        assert made, f"no exact version: {line}"
        found[canonicalize_name(made[1])] = (Version(made[2]), hashes)
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_is_what_setup_cfg_asks_for(name: str) -> None:
    pins = locked(name)
    for need in wanted("dev" if name == "dev" else ""):
        version, _ = pins[canonicalize_name(need.name)]
        assert need.specifier.contains(version), f"{need}, and {version} is locked; {RENEW}"


def test_what_users_install_has_upper_bounds() -> None:
    for need in wanted():
        operators = {part.operator for part in need.specifier}
        assert operators == {">=", "<"}, f"setup.cfg: {need}: from a version and below another"
    (jinja2,) = [need for need in wanted() if need.name == "jinja2"]
    assert not jinja2.specifier.contains("3.1.5"), "CVE-2025-27516 is mended in 3.1.6"


@pytest.mark.parametrize("name", LOCKS)
def test_every_version_has_hashes_and_no_index_is_named(name: str) -> None:
    for distribution, (_, hashes) in locked(name).items():
        assert hashes, distribution
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word) for word in hashes)


def test_the_two_locks_agree() -> None:
    everything = locked("dev")
    assert {name: everything.get(name) for name in locked("runtime")} == locked("runtime")


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_holds_what_its_distributions_need(name: str) -> None:
    pins = locked(name)
    for distribution in pins:
        try:
            needs = importlib.metadata.requires(distribution) or []
        except importlib.metadata.PackageNotFoundError:
            pytest.fail(f"{distribution} is locked and not installed; make again")
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                held = pins.get(canonicalize_name(need.name))
                assert held, f"{distribution} needs {need}, which is not locked; {RENEW}"
                assert need.specifier.contains(held[0]), f"{distribution} needs {need}; {RENEW}"


def test_the_trainer_of_the_demo_is_pinned_too() -> None:
    folder = REPO / "examples" / "torchtitan_lab"
    pins = {}
    for line in (folder / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            pin = Requirement(line)
            assert [part.operator for part in pin.specifier] == ["=="], line
            pins[canonicalize_name(pin.name)] = next(iter(pin.specifier)).version
    for line in (folder / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            need = Requirement(line)
            held = pins[canonicalize_name(need.name)]
            assert need.specifier.contains(held), f"{need}, and {held} is pinned"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """superv as it is installed, built from a copy: a build writes beside the source."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in (*PACKAGES, *NAMESPACES, "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        if (REPO / name).is_dir():
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPO / name, source / name, ignore=leave)
        else:
            shutil.copy(REPO / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    argv = [*pip, "--no-index", "--disable-pip-version-check", "-w", str(folder), str(source)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl")
    with zipfile.ZipFile(made) as archive:
        yield archive


def test_the_wheel_holds_every_file_of_the_packages(wheel: zipfile.ZipFile) -> None:
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    there = {
        str(path.relative_to(REPO))
        for package in (*PACKAGES, *NAMESPACES)
        for top in (REPO / package, *filter(Path.is_symlink, (REPO / package).rglob("*")))
        for path in top.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == there
    assert {f"{package}/py.typed" for package in PACKAGES} <= shipped


def test_the_wheel_says_its_licence_and_holds_it(wheel: zipfile.ZipFile) -> None:
    (metadata,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    told = Parser().parsestr(wheel.read(metadata).decode())
    assert (told["License-Expression"] or told["License"]) == "Apache-2.0"
    (text,) = [name for name in wheel.namelist() if name.endswith("/LICENSE")]
    assert wheel.read(text) == (REPO / "LICENSE").read_bytes()


def test_every_folder_that_is_shipped_is_in_this_table() -> None:
    """A new package gets py.typed and its place in the wheel's test."""
    config = configparser.ConfigParser()
    config.read(REPO / "setup.cfg")
    names = config["options.packages.find"]["include"].split()
    assert sorted(name.rstrip("*") for name in names) == sorted((*PACKAGES, *NAMESPACES))
