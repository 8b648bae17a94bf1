"""One small step on one node: the channel both ways, clocks, versions, the trainer there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
import time
from typing import Any

from healthchecks.frame.report import Finding
from launchers.slurm import client_env
from supervisor import __version__, proc
from supervisor.config import Job, Site
from supervisor.core.errors import UserError
from supervisor.core.secret import looks_secret
from supervisor.doctor import trainer
from supervisor.doctor.cluster import step_options
from supervisor.doctor.finding import fail, ok, unknown, warn
from supervisor.doctor.machine import LITTLE_MB, NETWORK
from supervisor.engine.address import engine_address

WAIT_NODE_S = 30  # for a free node
STEP_S = 120.0  # for all of it
ANSWER_S = 10.0
CLOCK_S = 1.0  # evidence is put in order by the nodes' clocks
NAME = "superv-doctor"


class NodeCall:
    """What came of a node's call."""

    def __init__(self, job: Job | None, nonce: str) -> None:
        self._job, self._nonce = job, nonce
        self.found: list[Finding] = []
        self.done = asyncio.Event()

    async def welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection to the test port; anybody's but the probe's is dropped."""
        with contextlib.suppress(OSError, ValueError, TimeoutError):
            hello = json.loads(await asyncio.wait_for(reader.readline(), ANSWER_S))
            if secrets.compare_digest(str(hello["nonce"]), self._nonce):
                await self._talk(hello, reader, writer)
        writer.close()

    async def _talk(
        self, hello: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        async def ask(word: str, seconds: float) -> Any:
            writer.write(word.encode() + b"\n")
            return json.loads(await asyncio.wait_for(reader.readline(), seconds))

        try:
            here = writer.get_extra_info("sockname")
            text = f"{hello['address']} reached {here[0]}:{here[1]}"
            self.found.append(ok("node to engine", text))
            self.found.append(await _dial(hello["address"], hello["rank_port"], self._nonce))
            samples = []
            for _ in range(5):
                asked = time.time()
                there = float(await ask("time", ANSWER_S))
                answered = time.time()
                samples.append((answered - asked, there - (asked + answered) / 2))
            self.found.append(clock(*min(samples)))
            self.found += facts(await ask("facts", STEP_S))
        finally:
            self.done.set()


async def look(job: Job | None, site: Site, *, probe: bool) -> list[Finding]:
    """Run the probe's step, or say how to."""
    check = "channel"
    if not probe:
        text = "not tried: ports between here and the nodes, clocks, superv and python there"
        return [unknown(check, text, "superv doctor JOB.YAML --probe runs a small step on a node")]
    try:
        address = engine_address(job, site)
    except UserError as error:
        return [unknown(check, f"no address to dial: {error}")]
    nonce = secrets.token_hex(16)
    call = NodeCall(job, nonce)
    server = None
    for port in range(site.engine_ports.first, site.engine_ports.last + 1):
        with contextlib.suppress(OSError):
            server = await asyncio.start_server(call.welcome, host=address, port=port)
            break
    if server is None:
        return [unknown(check, f"no port of {site.engine_ports} can be listened on at {address}")]
    order = {
        "address": address,
        "port": port,
        "nonce": nonce,
        "rank_ports": [site.rank_ports.first, site.rank_ports.last],
        "node_dir": str(site.node_dir),
        "trainer": trainer.python_command(job) if job else None,
        "workdir": str(job.trainer.workdir) if job else "/",
        "env": told_env(job) if job else {},
    }
    try:
        done = await _step(job, order)
    finally:
        server.close()
    if not call.found:
        return [_no_call(done, address, port, site)]
    if not call.done.is_set() or done.rc != 0:
        call.found.append(unknown(check, f"the probe's step ended early: {done.why()}"))
    return call.found


def told_env(job: Job) -> dict[str, str]:
    """The trainer's variables for a look at what it imports, without secrets.

    srun's standard input crosses the network as it is, and no import needs a password.
    """
    env = job.trainer.env.items()
    return {k: v for k, v in env if "{" not in v and not looks_secret(k, v)}


async def _step(job: Job | None, order: dict[str, Any]) -> proc.Completed:
    argv = ["srun", "--nodes=1", "--ntasks=1", f"--immediate={WAIT_NODE_S}", "--time=3"]
    argv += [f"--job-name={NAME}", "--mpi=none", "--chdir=/", "--quiet"]
    argv += step_options(job)
    argv += [sys.executable, "-I", "-m", "supervisor.doctor.on_node"]
    env = client_env(os.environ)
    # By standard input: argv is for everybody, and the trainer's variables are not.
    stdin = json.dumps(order).encode()
    done = await proc.run(argv, deadline_s=STEP_S, env=env, stdin=stdin)
    if done.timed_out:
        me = f"--user={os.getuid()}"
        await proc.run(("scancel", me, f"--name={NAME}"), deadline_s=ANSWER_S, env=env)
    return done


def _no_call(done: proc.Completed, address: str, port: int, site: Site) -> Finding:
    """No node called: why."""
    said = f"{done.err} {done.out}"
    if "supervisor" in said and ("No module named" in said or "ModuleNotFound" in said):
        text = f"{sys.executable} on the node has no superv: {done.why()}"
        return fail("superv on nodes", text, "install superv where nodes see it, at the same path")
    if "superv doctor on" in said:
        text = f"a node can't reach {address}:{port}: {said.strip().splitlines()[-1]}"
        fix = f"set engine_address in site.yaml, or open {site.engine_ports} from the nodes"
        return fail("node to engine", text, fix)
    if "busy" in said or "Immediate" in said or "Unable to allocate" in said or done.timed_out:
        text = f"no node was free within {WAIT_NODE_S} s: {done.why()}"
        return unknown("channel", text, "try again when a node is idle")
    if "execve" in said or "No such file" in said:
        text = f"{sys.executable} is not on the node: {done.why()}"
        return fail("superv on nodes", text, "install superv where nodes see it, at the same path")
    return fail("channel", f"the probe's step: {done.why()}", "see that srun works by itself")


async def _dial(address: str, port: int, nonce: str) -> Finding:
    """From here to a rank's port on the node. superv itself needs the other direction only."""
    check = "engine to node"
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_connection(address, port)
            line = await reader.readline()
            writer.close()
    except OSError as error:  # TimeoutError among them
        text = f"{address}:{port} (a rank's port) can't be reached from here: {error or 'silence'}"
        fix = "nodes must reach rank_ports of each other; from here only for this check"
        return warn(check, text, fix)
    if line.decode().strip() != nonce:
        return fail(check, f"{address}:{port}: somebody else answers", "choose other rank_ports")
    return ok(check, f"reached {address}:{port}, a rank's port")


def clock(trip_s: float, offset_s: float) -> Finding:
    """The node's clock against this one's, known to half of the round trip."""
    text = f"the node's is {offset_s * 1000:+.1f} ms (± {trip_s * 500:.1f}) from this machine's"
    if abs(offset_s) - trip_s / 2 > CLOCK_S:
        fix = "let chrony or ntpd set the clocks: evidence is put in order by them"
        return warn("clocks", text, fix)
    return ok("clocks", text)


def facts(answer: dict[str, Any]) -> list[Finding]:
    """What the node says of itself."""
    node, found = answer["node"], []
    if answer["version"] == __version__:
        found.append(ok("superv on nodes", f"{node}: version {__version__}, as here"))
    else:
        text = f"{node}: version {answer['version']}, here {__version__}"
        fix = "install the same version, at one path that all see"
        found.append(fail("superv on nodes", text, fix))
    found += [warn("node", f"{node}: {problem}", "see the node") for problem in answer["problems"]]
    found.append(_node_dir(node, answer))
    if "trainer" in answer:
        there = answer["trainer"]
        done = proc.Completed(
            argv=("python",),
            rc=there["rc"],
            out=there["out"],
            err=there["why"] if there["rc"] else "",
            took_s=0.0,
        )
        found += trainer.judge("trainer", f"on {node}", done)
    return found


def _node_dir(node: str, answer: dict[str, Any]) -> Finding:
    check, fix = "node_dir", "set node_dir in site.yaml to a local disk of the nodes"
    if not answer["node_dir"]:
        return fail(check, f"{node}: {answer['node_dir_why']}", fix)
    kind, blocks, size = answer["node_dir"].split("|")
    free = int(blocks) * int(size) // 1_000_000
    text = f"{node}: {kind}, {free / 1000:.1f} GB free"
    if kind in NETWORK:
        return fail(check, f"{text}: not a local disk", fix)
    if not answer["node_dir_writable"]:
        return fail(check, f"{text}: can't be written by you", fix)
    if answer["node_dir_open"]:
        return fail(
            check,
            f"{text}: other users may rename what is in it",
            "chmod +t it as root, or set node_dir in site.yaml to a folder that is root's or yours",
        )
    return ok(check, text) if free >= LITTLE_MB else warn(check, text, "make room there")
