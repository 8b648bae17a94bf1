"""A healthy B200 node as files below a root, to be broken by tests.

8 GPUs, 8 ConnectX-7 400G InfiniBand and 2 200G RoCE ports, 4 NVLink switch management ports (LPF),
120 vCPU in 2 NUMA nodes, 2 TiB, an NFS mount. Files and their texts are those of Linux 6.8 with
mlx5 and the open NVIDIA driver, as far as their kernel documentation (Documentation/ABI) and
source tell; nothing here was copied from a machine.

    with borrowed() as tree:  # one tree for all tests of the session, mended afterwards
        tree.write("sys/class/infiniband/mlx5_3/ports/1/state", "2: INIT")
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.hardware import tree_nics, tree_os

GPUS = ("1b", "29", "45", "4e", "9d", "ac", "c1", "cc")
GPU_BDFS = tuple(f"0000:{bus}:00.0" for bus in GPUS)
FABRIC, STORAGE, LPF = tree_nics.FABRIC, tree_nics.STORAGE, tree_nics.LPF
NUMA_OF = tree_nics.NUMA_OF  # by bus address, GPUs and NICs
DRIVER = "580.95.05"
BOOT_ID = tree_os.BOOT_ID


class Tree:
    """Files below `root`. Paths are relative to it, as "proc/meminfo"; links are followed.

    What is changed through these methods can be taken back by `restore`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._kept = root.with_name(f"{root.name}.kept")  # what changes replaced
        self._undo: list[tuple[Path, Path | None]] = []  # a place, and what was there

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def read(self, path: str) -> str:
        return self.path(path).read_text(errors="replace").strip()

    def write(self, path: str, text: str) -> None:
        """Folders are made as needed."""
        self._clear(path).write_text(text + "\n")

    def change(self, path: str, old: str, new: str) -> None:
        """Replace a piece of a file, which must be there."""
        text = self.read(path)
        assert old in text, f"{path} has no {old!r}"
        self.write(path, text.replace(old, new))

    def add(self, path: str, by: int) -> None:
        """Let a counter grow."""
        self.write(path, str(int(self.read(path)) + by))

    def remove(self, path: str) -> None:
        """A file, a link or a folder with all below it, which must be there."""
        assert os.path.lexists(self.path(path)), f"{path} is not there"
        self._clear(path)

    def link(self, path: str, to: str) -> None:
        """A symbolic link. `to` is relative to the root."""
        place = self._clear(path)
        place.symlink_to(os.path.relpath(self.path(to).resolve(), place.parent.resolve()))

    def symlink(self, path: str, text: str) -> None:
        """A symbolic link that says just this, as the kernel's own do."""
        self._clear(path).symlink_to(text)

    def unreadable(self, path: str) -> None:
        """A file or folder that is there and can't be read: OSError (ELOOP), for root too."""
        place = self._clear(path)
        place.symlink_to(place.name)

    def restore(self) -> None:
        """Take all changes back."""
        while self._undo:
            place, earlier = self._undo.pop()
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)
            if earlier is not None:
                earlier.rename(place)

    def _clear(self, path: str) -> Path:
        """The place, empty, in a folder that is there."""
        place = self.path(path)
        new = None
        for folder in place.parents:
            if folder.exists():
                break
            new = folder
        if new is not None:
            self._undo.append((new, None))
            place.parent.mkdir(parents=True)
        earlier = None
        if os.path.lexists(place):
            self._kept.mkdir(exist_ok=True)
            earlier = self._kept / str(len(self._undo))
            place.rename(earlier)
        self._undo.append((place, earlier))
        return place


@contextmanager
def borrowed() -> Iterator[Tree]:
    """The healthy node, shared by all tests of this process; mended when it is given back."""
    tree = _shared()
    try:
        yield tree
    finally:
        tree.restore()


@functools.cache
def _shared() -> Tree:
    folder = Path(tempfile.mkdtemp(prefix="superv-tree-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return healthy(folder)


def empty(tmp: Path) -> Tree:
    """A root with nothing in it."""
    root = tmp / "empty-root"
    root.mkdir()
    return Tree(root)


def healthy(tmp: Path, name: str = "root") -> Tree:
    """A tree of its own (50 ms; see `borrowed`). `tmp / name` must not exist yet."""
    root = tmp / name
    folders, files, links = _plan()
    at = os.fspath(root)
    os.mkdir(at)
    for folder in folders:
        os.mkdir(f"{at}/{folder}")
    for path, text in files:
        fd = os.open(f"{at}/{path}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, text)
        os.close(fd)
    for path, to in links:
        os.symlink(to, f"{at}/{path}")
    return Tree(root)


@functools.cache
def _plan() -> tuple[list[str], list[tuple[str, bytes]], list[tuple[str, str]]]:
    """Folders (parents first), files and links (with their relative targets)."""
    files: dict[str, str] = {}
    links: dict[str, str] = {}
    folders: set[str] = set(tree_os.FOLDERS)
    for part in (_gpus(), tree_nics.files(), tree_os.files(), tree_os.cpus()):
        assert not part.keys() & files.keys()
        files |= part
    links |= tree_nics.links()
    for path in tree_nics.unreadable():
        links[path] = path.rpartition("/")[2]  # a link to itself
    for path in [*files, *links]:
        folders.add(path.rpartition("/")[0])
    for folder in [*folders]:
        while folder := folder.rpartition("/")[0]:
            folders.add(folder)
    folders.discard("")
    return (
        sorted(folders),
        [(p, f"{t}\n".encode()) for p, t in files.items()],
        [*links.items()],
    )


def _gpus() -> dict[str, str]:
    """NVIDIA B200: 10de:2901, class 0x030200 (3D controller)."""
    found = {"sys/module/nvidia/version": DRIVER}
    found["proc/driver/nvidia/version"] = (
        f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {DRIVER}  Release Build"
    )
    for index, bdf in enumerate(GPU_BDFS):
        found |= tree_nics.pci(bdf, "0x10de", "0x2901", "0x030200", index // 4)
        found[f"sys/bus/pci/devices/{bdf}/subsystem_device"] = "0x1999"
        found[f"proc/driver/nvidia/gpus/{bdf}/information"] = (
            f"Model: \t\t NVIDIA B200\nIRQ:   \t\t {120 + index}\n"
            f"Bus Location: \t {bdf}\nDevice Minor: \t {index}"
        )
        found[f"dev/nvidia{index}"] = ""
    found |= {"dev/nvidiactl": "", "dev/nvidia-uvm": "", "dev/nvidia-uvm-tools": ""}
    return found
