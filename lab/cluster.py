"""A lab: up, down, status, commands on its nodes, and faults."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from lab import build, cgroups, faults, limits, link, mounts, node, packages, status
from lab.layout import (
    BASE,
    CONTROLLER,
    CTLD_PORT,
    LOGIN,
    SLURMD_PORT,
    USER,
    Layout,
    node_names,
)
from lab.status import LabStatus
from supervisor import proc
from supervisor.core.errors import UserError

BOOTS_AT_ONCE = 32  # each holds a few file descriptors of this process


def exposed_by_default() -> tuple[Path, ...]:
    """The checkout that holds this package, and the Python that runs it."""
    repo = Path(__file__).resolve().parent.parent
    return tuple({repo: 0, Path(sys.prefix): 0, Path(sys.base_prefix): 0})


def names() -> list[str]:
    """Names of all labs of this machine, also of those that a crash left half-built."""
    return sorted(path.name for path in BASE.iterdir()) if BASE.is_dir() else []


class Lab:
    """One lab, by name. Holds no state: every call looks at the lab's folder and processes."""

    def __init__(self, name: str = "default") -> None:
        self.name = name
        self.layout = Layout(name=name)

    # --- up and down ---

    def up(
        self,
        nodes: int,
        *,
        gpus: int = 8,
        settings: Mapping[str, str] | None = None,
        exposed: Sequence[Path] | None = None,
        strict: bool = False,
        slurm: str = "",
        deadline_s: float = 60,
    ) -> None:
        """Build the lab and wait until every node is idle. Nothing happens if it is there already.

        `settings` override keys of slurm.conf. `exposed` are paths that the lab's user must be
        able to read at their own place, wherever they lie. `strict` is a cluster that gives
        little: see docs/lab-faults.md. `slurm` is a release of Slurm from Debian's packages (24.11,
        26.05); without it the machine's own runs.

        Raises:
            UserError: not root, a program is missing, the lab is up in another shape, or a node
                or Slurm did not come up in time; nothing is left behind then.
            UnavailableError: that release can't be fetched here.
        """
        build.check(nodes, gpus, strict=strict, slurm=slurm)
        unpacked = packages.get(slurm) if slurm else None
        paths = exposed_by_default() if exposed is None else exposed
        spec = build.Spec(
            nodes=nodes,
            gpus=gpus,
            settings=dict(settings or {}),
            exposed=[str(path) for path in paths],
            uid=build.free_uid(),
            strict=strict,
            slurm=slurm,
            running=unpacked.text if unpacked else packages.of_machine(),
        )
        with build.locked(self.layout):
            if self._is_up(spec):
                return
            build.clear(self.layout)
            try:
                build.write(self.layout, spec, unpacked)
                asyncio.run(self._start(spec, deadline_s))
                build.save(self.layout, replace(spec, complete=True))
            except TimeoutError as error:
                why = self._last_words(spec)
                build.clear(self.layout)
                raise UserError(f"lab {self.name} did not come up: {error}; {why}") from error
            except BaseException:
                build.clear(self.layout)
                raise

    def down(self) -> bool:
        """End the lab and remove everything of it; False if there was none."""
        build.check_root()
        if not self.layout.dir.exists() and not node.boot_pids(self.layout):
            return False
        with build.locked(self.layout):
            build.clear(self.layout)
        return True

    def _is_up(self, wanted: build.Spec) -> bool:
        """Whether this very lab is there; UserError if another one has the name."""
        there = build.load(self.layout)
        if there is None or not there.complete or not self._is_on(CONTROLLER):
            return False
        new, old = asdict(wanted), asdict(there)
        keys = ("nodes", "gpus", "settings", "exposed", "strict", "slurm")
        differ = [key for key in keys if new[key] != old[key]]
        if not differ:
            return True
        old["slurm"], new["slurm"] = old["slurm"] or "(own)", new["slurm"] or "(own)"
        what = ", ".join(f"{key} {old[key]}, not {new[key]}" for key in differ)
        raise UserError(f"lab {self.name} is up with {what}; superv lab down --name {self.name}")

    async def _start(self, spec: build.Spec, deadline_s: float) -> None:
        end = time.monotonic() + deadline_s
        await node.boot(self.layout, CONTROLLER)
        await node.until(
            self._controller_listens, deadline_s=deadline_s, what="slurmctld does not listen"
        )
        compute = node_names(spec.nodes)
        some = asyncio.Semaphore(BOOTS_AT_ONCE)

        async def boot(name: str) -> None:
            async with some:
                await node.boot(self.layout, name)

        await asyncio.gather(*(boot(name) for name in (LOGIN, *compute)))
        await node.until(
            lambda: self._is_on(LOGIN), deadline_s=end - time.monotonic(), what="login is not on"
        )
        await self._idle(compute, deadline_s=end - time.monotonic())

    def _controller_listens(self) -> bool:
        ended = self.layout.node(CONTROLLER) / "ended"
        if ended.exists():
            raise TimeoutError(ended.read_text().strip())
        return self._listens(CONTROLLER, CTLD_PORT)

    async def _idle(self, compute: Sequence[str], *, deadline_s: float) -> None:
        end = time.monotonic() + deadline_s
        while True:
            states = await self._states()
            late = [name for name in compute if states.get(name) != "idle"]
            if not late:
                return
            for ended in (self.layout.node(name) / "ended" for name in late):
                if ended.exists():
                    raise TimeoutError(ended.read_text().strip())
            if time.monotonic() > end:
                seen = ", ".join(f"{name} {states.get(name, 'unknown')}" for name in late[:8])
                raise TimeoutError(f"nodes not idle within {deadline_s:.0f} s: {seen}")
            await asyncio.sleep(0.1)

    async def _states(self) -> dict[str, str]:
        """State of every node by sinfo; empty if Slurm does not answer."""
        argv = ["sinfo", "--noheader", "--Node", "--format=%N %T"]
        entered = node.enter(self.layout, CONTROLLER, argv, uid=0, cwd="/", env={})
        done = await proc.run(entered, deadline_s=5)
        if done.rc != 0:
            return {}
        return dict(line.split() for line in done.out.splitlines())

    def _last_words(self, spec: build.Spec) -> str:
        """What the parts of a lab that failed said last."""
        lay = self.layout
        logs = [lay.node(CONTROLLER) / "console"]
        for name in (LOGIN, *node_names(spec.nodes)):
            if not self._is_on(name) or (lay.node(name) / "ended").exists():
                logs.append(lay.node(name) / "console")
        said = []
        for log in logs[:3]:
            lines = log.read_text().splitlines() if log.exists() else []
            bad = [line for line in lines if "error" in line or "fatal" in line] or lines
            said += [f"{log.parent.name} said: {bad[0]}"] if bad else []
        return "; ".join(said) or "no log says why"

    # --- looking ---

    def _is_on(self, name: str) -> bool:
        return node.init_pid(self.layout, name) is not None

    def _listens(self, name: str, port: int) -> bool:
        pid = node.init_pid(self.layout, name)
        return pid is not None and node.listens(pid, port)

    def spec(self) -> build.Spec:
        """What the lab is.

        Raises:
            UserError: there is no such lab, or it was never finished.
        """
        build.check_root()
        spec = build.load(self.layout)
        if spec is None or not spec.complete or not self._is_on(CONTROLLER):
            raise UserError(
                f"there is no lab {self.name!r} (labs: {', '.join(names()) or 'none'}); "
                f"superv lab up --name {self.name} --nodes 3"
            )
        return spec

    @property
    def compute(self) -> tuple[str, ...]:
        """Names of the compute nodes."""
        return node_names(self.spec().nodes)

    @property
    def shared(self) -> Path:
        """The shared file system; the same path on the machine and on every node."""
        return self.layout.shared

    @property
    def home(self) -> Path:
        """Home of the lab's user, on the shared file system."""
        return self.layout.home

    def _named(self, name: str, *, ctl: bool) -> str:
        valid = (*((CONTROLLER,) if ctl else ()), LOGIN, *self.compute)
        if name not in valid:
            raise UserError(f"lab {self.name} has no node {name!r}; valid: {', '.join(valid)}")
        return name

    def status(self, *, last_faults: int = 5) -> LabStatus:
        """The lab now. Slurm is not asked while its controller is paused: it would not answer."""
        spec = self.spec()
        answers = faults.controller_state(self.layout) == "running"
        states = asyncio.run(self._states()) if answers else {}
        return status.look(
            self.layout, spec.nodes, states, slurm=spec.running, last_faults=last_faults
        )

    def controller(self) -> str:
        """slurmctld: running, paused or dead."""
        return faults.controller_state(self.layout)

    def processes(self) -> list[node.LabProcess]:
        """Everything that runs on the lab's nodes."""
        return node.processes(self.layout, (CONTROLLER, LOGIN, *self.compute))

    def wait_idle(self, *compute: str, deadline_s: float = 60) -> None:
        """Wait until Slurm calls the nodes (default: all) idle; TimeoutError names late ones."""
        valid = [self._named(name, ctl=False) for name in compute]
        asyncio.run(self._idle(valid or self.compute, deadline_s=deadline_s))

    # --- commands ---

    def enter(
        self,
        name: str,
        argv: Sequence[str],
        *,
        user: str = USER,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> list[str]:
        """The command line that runs `argv` on a node, for callers that start it themselves.

        `user` is the lab's own or root; `cwd` defaults to that user's home.
        """
        if user not in (USER, "root"):
            raise UserError(f"lab {self.name} has no user {user!r}; valid: {USER}, root")
        self._named(name, ctl=True)
        uid = self.spec().uid if user == USER else 0
        home = str(self.home) if user == USER else "/"
        return node.enter(self.layout, name, argv, uid=uid, cwd=cwd or home, env=env or {})

    def run(
        self,
        name: str,
        argv: Sequence[str],
        *,
        user: str = USER,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        deadline_s: float = 60,
    ) -> proc.Completed:
        """Run a command on a node to its end or its deadline."""
        entered = self.enter(name, argv, user=user, cwd=cwd, env=env)
        return proc.run_sync(entered, stdin=stdin, deadline_s=deadline_s)

    # --- faults ---

    def poweroff(self, name: str) -> faults.InjectedFault:
        """Power a node off. Its peers see silence: no FIN, no RST."""
        self._named(name, ctl=False)
        entry = faults.poweroff(self.layout, name)
        link.clear(self.layout, name)
        self._forget_cgroups(name)
        return entry

    def _forget_cgroups(self, name: str) -> None:
        node.wait(
            lambda: not cgroups.remove(self.layout, name), deadline_s=5, what=f"the end of {name}"
        )

    def poweron(self, name: str, *, deadline_s: float = 20) -> faults.InjectedFault:
        """Power a node on again: new boot id, empty /tmp; back when its slurmd listens."""
        if self._is_on(self._named(name, ctl=False)):
            raise UserError(f"node {name} of lab {self.name} is on already")
        entry = faults.poweron(self.layout, name)

        def ready() -> bool:
            return self._is_on(name) if name == LOGIN else self._listens(name, SLURMD_PORT)

        async def start() -> None:
            await node.boot(self.layout, name)
            await node.until(ready, deadline_s=deadline_s, what=f"{name} is not on")

        try:
            asyncio.run(start())
        except TimeoutError as error:
            raise UserError(f"{error}; see {self.layout.node(name) / 'console'}") from error
        return entry

    def cut(self, name: str) -> faults.InjectedFault:
        """Pull a node's cable."""
        return faults.cut(self.layout, self._on(name))

    def mend(self, name: str) -> faults.InjectedFault:
        """Put a node's cable back."""
        return faults.mend(self.layout, self._on(name))

    def slow(self, name: str, rate: str) -> faults.InjectedFault:
        """Let no more than `rate` (as tc writes it: 10mbit) through a node's cable, each way."""
        return link.slow(self.layout, self._on(name), rate)

    def lossy(self, name: str, percent: float) -> faults.InjectedFault:
        """Lose that share of the frames on a node's cable, each way."""
        return link.lossy(self.layout, self._on(name), percent)

    def delay(self, name: str, ms: float) -> faults.InjectedFault:
        """Let every frame on a node's cable arrive so many milliseconds later, each way."""
        return link.delay(self.layout, self._on(name), ms)

    def fast(self, name: str) -> faults.InjectedFault:
        """Undo slow, lossy and delay."""
        return link.fast(self.layout, self._on(name))

    def steal(self, name: str, percent: float) -> faults.InjectedFault:
        """Take that share of the machine's CPU time from all that runs on a node."""
        return limits.steal(self.layout, self._on(name), percent)

    def memory(self, name: str, mib: int) -> faults.InjectedFault:
        """Let a node take so many MiB more; beyond that the OOM killer comes."""
        return limits.memory(self.layout, self._on(name), mib)

    def relieve(self, name: str) -> faults.InjectedFault:
        """Undo steal and memory."""
        return limits.relieve(self.layout, self._on(name))

    def mount_fault(
        self, name: str, path: str | Path, mode: str, *, delay_s: float = 3.0
    ) -> faults.InjectedFault:
        """Mount a node's folder over itself and let it be ok, hung, stale, slow or readonly.

        `delay_s` is what slow adds to each request; off takes the mount away.
        """
        return mounts.fault(self.layout, self._on(name), str(path), mode, delay_s=delay_s)

    def kmsg(self, name: str, *lines: str, priority: int = 4) -> faults.InjectedFault:
        """Append lines to a node's kernel log."""
        return faults.kmsg(self.layout, self._on(name), lines, priority=priority)

    def _on(self, name: str) -> str:
        if not self._is_on(self._named(name, ctl=False)):
            raise UserError(f"node {name} of lab {self.name} is off; superv lab poweron {name}")
        return name

    def pause_controller(self) -> faults.InjectedFault:
        """Stop slurmctld (SIGSTOP): it accepts connections and answers nothing."""
        self.spec()
        return faults.signal_controller(self.layout, pause=True)

    def resume_controller(self) -> faults.InjectedFault:
        """Let slurmctld go on."""
        self.spec()
        return faults.signal_controller(self.layout, pause=False)
