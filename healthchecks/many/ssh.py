"""Asks a node through ssh, where Slurm can't use it. Never asks a person for anything.

Host keys are checked against known_hosts; keys come from an agent or a file. The command on the
node ends when the connection does: it holds its standard input as a leash.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from healthchecks.frame.check import Status
from healthchecks.frame.frames import Collector
from supervisor.config import Ssh
from supervisor.core.errors import UserError
from supervisor.host import announced, trusted

if TYPE_CHECKING:
    from paramiko import SSHClient

SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")
LATE_S = 2.0  # over the deadline, for a thread that keeps it by itself
POLL_S = 0.5  # a worker looks so often whether it is still wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class NoReport:
    """Why a node gave no report."""

    status: Status  # FAIL: it does not answer; UNKNOWN: it may, but we could not ask
    seen: str
    fix: str = ""
    refused: bool = False  # its kernel answers: nothing listens there


@dataclass(slots=True, kw_only=True)
class SshSession:
    """One connection. `run` blocks, and is called in a thread of its own."""

    node: str
    settings: Ssh
    command: str
    order: bytes
    nonce: str
    end: float  # monotonic
    given_up: bool = False
    client: SSHClient | None = None

    def run(self) -> str | NoReport:
        """The text of the report, or why there is none."""
        import paramiko

        if why := _untrusted(self.settings):
            return NoReport(
                status=Status.UNKNOWN,
                seen=f"ssh is not used as root: {why}",
                fix="set HOME to root's own, and ssh.key_file to a file of root's",
            )
        logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # what it logs is raised as well
        try:
            self.client = _client()
            self._connect(self.client)
            return self._ask(self.client)
        except paramiko.BadHostKeyException as error:
            return NoReport(
                status=Status.UNKNOWN,
                seen=f"ssh: its host key is not the one in known_hosts, but {_print(error.key)}",
                fix=f"if the node was reinstalled: ssh-keygen -R {self._known_as}, then see "
                "below; else somebody is in between",
            )
        except _UnknownKey as error:
            return NoReport(
                status=Status.UNKNOWN,
                seen=f"ssh: its host key is not in known_hosts: {_print(error.key)}",
                fix=f"compare the fingerprint with the node's, then ssh-keyscan -p "
                f"{self.settings.port} {self.node} >> ~/.ssh/known_hosts",
            )
        except paramiko.AuthenticationException as error:
            return self._refused(error)
        except socket.gaierror as error:
            return NoReport(
                status=Status.UNKNOWN,
                seen=f"ssh: the name {self.node} has no address here: {error.strerror}",
                fix="add it to DNS or /etc/hosts",
            )
        except (OSError, EOFError, paramiko.SSHException) as error:
            return self._silent(error)
        finally:
            if self.client is not None:
                self.client.close()

    @property
    def _known_as(self) -> str:
        return self.node if self.settings.port == 22 else f"[{self.node}]:{self.settings.port}"

    def _left_s(self) -> float:
        return max(0.1, self.end - time.monotonic())

    def _connect(self, client: SSHClient) -> None:
        limit = min(self.settings.connect_timeout_s, self._left_s())
        key = self.settings.key_file
        client.connect(
            self.node,
            port=self.settings.port,
            username=self.settings.user,
            key_filename=str(key) if key else None,
            look_for_keys=key is None,
            timeout=limit,
            banner_timeout=limit,
            auth_timeout=limit,
            channel_timeout=limit,
        )

    def _ask(self, client: SSHClient) -> str | NoReport:
        transport = client.get_transport()
        assert transport is not None
        channel = transport.open_session(timeout=self._left_s())
        channel.set_combine_stderr(True)
        channel.exec_command(self.command)
        channel.sendall(self.order)  # and leave it open: it is the leash
        collector = Collector(nonce=self.nonce)
        channel.settimeout(POLL_S)
        while not self.given_up and time.monotonic() < self.end:
            try:
                data = channel.recv(65536)
            except TimeoutError:
                continue
            if not data:
                return self._ended(collector, channel.recv_exit_status())
            for _, text in collector.feed(data):
                return text
        begun = "its checks began and did not end" if collector.began else "but nothing starts"
        return NoReport(
            status=Status.FAIL,
            seen=f"ssh lets in, {begun} before the deadline",
            fix="look for a hung home directory or disk on its console",
        )

    def _ended(self, collector: Collector, code: int) -> NoReport:
        said = collector.said[-1].strip() if collector.said else "it said nothing"
        return NoReport(
            status=Status.UNKNOWN,
            seen=f"ssh: the checks ended with {code}: {said}",
            fix="install superv there at the same path, or set node_python in site.yaml",
        )

    def _refused(self, error: Exception) -> NoReport:
        banner = b""
        if self.client is not None and (transport := self.client.get_transport()) is not None:
            banner = transport.get_banner() or b""
        lines = banner.decode(errors="replace").strip().splitlines()
        why = lines[-1].strip() if lines else str(error).rstrip(".")
        user = f" {self.settings.user}" if self.settings.user else ""
        return NoReport(
            status=Status.UNKNOWN,
            seen=f"ssh does not let{user or ' you'} in: {why}",
            fix="load a key that the node knows into ssh-agent, or set ssh.key_file and ssh.user "
            "in site.yaml; where pam_slurm_adopt guards the node, use a user that it exempts",
        )

    def _silent(self, error: Exception) -> NoReport:
        # paramiko has an error for each address; any of them will do
        cause = next(iter(getattr(error, "errors", {}).values()), error)
        why = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        if isinstance(cause, TimeoutError):
            why = f"no answer within {self.settings.connect_timeout_s:g} s"
        return NoReport(
            status=Status.FAIL,
            seen=f"ssh: port {self.settings.port}: {why}",
            fix="look at the node's console and power; is sshd running?",
            refused=isinstance(cause, ConnectionRefusedError),
        )


class _UnknownKey(Exception):
    def __init__(self, key: Any) -> None:
        self.key = key


def _print(key: Any) -> str:
    return f"{key.get_name()} {key.fingerprint}"


def _client() -> SSHClient:
    """A client that knows the user's and the system's hosts. Raises UserError."""
    import paramiko

    class Reject(paramiko.MissingHostKeyPolicy):
        def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
            raise _UnknownKey(key)

    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(Reject())
    client.load_system_host_keys()
    with suppress(FileNotFoundError):
        client.load_system_host_keys(str(SYSTEM_KNOWN_HOSTS))
    return client


def _untrusted(settings: Ssh) -> str:
    """Why root may not use what it knows of hosts, and keys; empty where it may.

    HOME may be a user's (sudo can keep it): who may write known_hosts can stand in for a node.
    """
    places = [Path("~/.ssh/known_hosts").expanduser(), SYSTEM_KNOWN_HOSTS]
    places += [settings.key_file] if settings.key_file else []
    return next((why for at in places if (why := trusted.problem(at, sticky=True))), "")


def check(settings: Ssh) -> None:
    """Raises UserError where the key file can't be read."""
    if settings.key_file is None:
        return
    try:
        settings.key_file.read_bytes()
    except OSError as error:
        raise UserError(
            f"site.yaml: ssh.key_file: {settings.key_file}: {error.strerror}; name a private key "
            "that you may read, or remove the key to use ssh-agent"
        ) from error


async def ask(
    node: str,
    settings: Ssh,
    order: bytes,
    nonce: str,
    *,
    python: str,
    deadline_s: float,
) -> str | NoReport:
    """The text of a node's report, or why there is none; cancelling closes the connection."""
    session = SshSession(
        node=node,
        settings=settings,
        command=f"exec {shlex.join([python, '-I', '-m', 'healthchecks'])}",
        order=order,
        nonce=nonce,
        end=time.monotonic() + deadline_s,
    )
    try:
        async with asyncio.timeout(deadline_s + LATE_S):
            return await _in_thread(session.run)
    except TimeoutError:  # before the connection: nothing there knows a deadline
        return NoReport(
            status=Status.UNKNOWN,
            seen=f"ssh: nothing came of it within {deadline_s + LATE_S:.0f} s",
            fix=f"here: does `getent hosts {node}` answer, and can ~/.ssh be read?",
        )
    finally:
        session.given_up = True


async def _in_thread(work: Callable[[], str | NoReport]) -> str | NoReport:
    """In a thread that nobody waits for when the process ends: it may hang in the network."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str | NoReport] = loop.create_future()

    def set_result(found: str | NoReport | BaseException) -> None:
        if answer.done():
            return
        if isinstance(found, BaseException):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def body() -> None:
        announced.has_own_deadline()
        try:
            found: str | NoReport | BaseException = work()
        except BaseException as error:
            found = error
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(set_result, found)

    threading.Thread(target=body, daemon=True, name="ssh").start()
    return await answer
