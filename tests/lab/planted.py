"""A lab of 63 nodes that look like B200 nodes, and eight defects planted on eight of them.

Slurm, srun, processes, the hung mount and the dark node are real. What no lab has (GPUs,
InfiniBand, the kernel's view of them) are files below a root of each node's own, and the NVML of
tests/hardware/nvml: the Python that site.yaml names for nodes adds that root to the order.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from lab.cluster import Lab
from tests import hardware
from tests.hardware.cohort import own_traits
from tests.hardware.nvml import ROOT, SCRIPT, build
from tests.hardware.tree import FABRIC, STORAGE, Tree, healthy

NODES = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """One thing that is wrong on one node, and what must be found there."""

    node: str
    check: str
    plant: Callable[[Tree], None]


def _says(*lines: str) -> Callable[[Tree], None]:
    return lambda tree: tree.write(SCRIPT, "\n".join(lines))


def _nothing(tree: Tree) -> None:
    """Planted on the real node, not in its files."""


def _xid(tree: Tree) -> None:
    line = "4,900,1000000,-;NVRM: Xid (PCI:0000:1b:00): 79, pid=4242, GPU has fallen off the bus."
    tree.write("dev/kmsg", f"{tree.read('dev/kmsg')}\n{line}")


DEFECTS = (
    Defect(node="n7", check="node.answers", plant=_nothing),  # powered off
    Defect(
        node="n12",
        check="gpu.handle",
        plant=_says("nvmlDeviceGetHandleByIndex_v2 3 rc 15"),
    ),
    Defect(
        node="n20",
        check="ecc.unc_volatile",
        plant=_says("nvmlDeviceGetMemoryErrorCounter 5 value 2"),
    ),
    Defect(node="n23", check="nfs.alive", plant=_nothing),  # a mount that hangs
    Defect(
        node="n31",
        check="ib.port",
        plant=lambda tree: tree.write(
            f"sys/class/infiniband/{FABRIC[2]}/ports/1/rate", "200 Gb/sec (4X HDR)"
        ),
    ),
    Defect(node="n37", check="xid", plant=_xid),
    Defect(
        node="n44",
        check="versions",
        plant=lambda tree: tree.write("sys/module/nvidia/version", "570.133.20"),
    ),
    Defect(
        node="n50",
        check="cpu.layout",
        plant=lambda tree: tree.write(
            "sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "0,60"
        ),
    ),
)


PFC = (
    "pfc-cap 8 macsec-bypass off delay 4096\n"
    "prio-pfc 0:off 1:off 2:off 3:on 4:off 5:off 6:off 7:off"
)
HARDWARE = Path(hardware.__file__).parent


class Planted:
    """The folder that all nodes see, and what is in it."""

    def __init__(self, folder: Path, nodes: int = NODES) -> None:
        self.folder = folder
        self.trees = {f"n{i}": self._tree(i) for i in range(1, nodes + 1)}
        self.site = folder / "site.yaml"
        self.site.write_text(
            yaml.safe_dump(
                {
                    "state_dir": str(folder / "state"),
                    "node_python": str(self._python()),
                }
            )
        )
        (folder / "state").mkdir()
        (folder / "state").chmod(0o777)

    def _tree(self, number: int) -> Tree:
        """A node without defects, as it looks to the checks in a lab."""
        name = f"n{number}"
        tree = healthy(self.folder, name)
        own_traits(tree, number)
        tree.write("proc/sys/kernel/hostname", name)
        tree.write(SCRIPT, "")
        tree.write("etc/hosts", f"127.0.0.1 localhost\n10.0.0.{number} {name}")
        tree.write("proc/2101/comm", "nv-fabricmanage")
        tree.write("proc/2102/comm", "nvlsm")
        tree.write(
            "proc/self/status", "Name:\tsuperv\nCpus_allowed_list:\t0-119\nMems_allowed_list:\t0-1"
        )
        for device in [*tree.path("dev").glob("nvidia*"), *tree.path("dev/infiniband").iterdir()]:
            device.chmod(0o666)
        return tree

    def _python(self) -> Path:
        """The Python of the nodes: it adds the root to the order, and finds what stands in."""
        library, programs = build(self.folder / "lib"), self.folder / "bin"
        for source, target in (
            ("verbs_stub.c", "libibverbs.so.1"),
            ("adjtimex.c", "adjtimex.so"),
        ):
            argv = ["gcc", "-shared", "-fPIC", "-o", library / target, HARDWARE / source]
            subprocess.run(argv, check=True)
        programs.mkdir()
        (programs / "dcb").write_text(f"#!/bin/sh\necho {shlex.quote(PFC)}\n")
        (programs / "dcb").chmod(0o755)
        mtus = " ".join(f"{device}=5/5" for device in (*FABRIC, *STORAGE))
        at = shlex.quote(str(self.folder))
        text = f"""#!/bin/sh
root={at}/$(hostname)
if [ "$1" = -I ]; then shift; fi
sed -u "1s|^{{|{{\\"root\\": \\"$root\\", |" | exec env \\
    LD_LIBRARY_PATH={at}/lib SUPERV_FAKE_NVML="$root/{SCRIPT}" IBV_STUB={shlex.quote(mtus)} \\
    LD_PRELOAD={at}/lib/adjtimex.so OFFSET=10 ESTERROR=10 STATUS=1 \\
    PATH={at}/bin:/usr/bin:/bin PYTHONPATH={shlex.quote(str(ROOT))} \\
    {shlex.quote(sys.executable)} "$@"
"""
        python = self.folder / "node-python"
        python.write_text(text)
        python.chmod(0o755)
        return python

    def plant(self, lab: Lab) -> None:
        """All defects whose nodes are there."""
        for defect in DEFECTS:
            if defect.node in self.trees:
                defect.plant(self.trees[defect.node])
        if "n23" in self.trees:
            lab.mount_fault("n23", self.folder / "n23/shared", "hung")
        if "n7" in self.trees:
            lab.poweroff("n7")
            # Until Slurm knows, it starts steps there, and takes half a minute to end them.
            end = time.monotonic() + 60
            while "down" not in lab.run("ctl", ["sinfo", "-hNn", "n7", "-o%T"]).out:
                assert time.monotonic() < end, "Slurm does not notice that n7 is off"
                time.sleep(0.2)
