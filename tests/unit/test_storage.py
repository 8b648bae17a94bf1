"""Questions about checkpoints, put to children that may hang."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from supervisor.checkpoints import storage
from supervisor.checkpoints.dcp import verify
from supervisor.checkpoints.storage import Storage
from supervisor.core.errors import TransientError

FULL = Path(__file__).parents[1] / "data" / "dcp" / "step-5"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    shutil.copytree(FULL, tmp_path / "a0001" / "step-5")
    return tmp_path


def test_the_answer_is_what_looking_oneself_gives(there: Path) -> None:
    async def scenario() -> None:
        async with Storage() as asked:
            directory, one = str(there), str(there / "a0001" / "step-5")
            scan = await asked.scan(directory, deadline_s=30)
            assert scan.found == (verify(one),) and scan.found[0].verified
            assert (await asked.scan(directory, deadline_s=30, above=5)).found == ()
            assert await asked.verify(one, deadline_s=30) == verify(one)
            report = await asked.verify(one, deadline_s=30, required=("moon",))
            assert not report.verified and "moon" in report.reason

    asyncio.run(scenario())


def test_a_hundred_questions_at_once(there: Path) -> None:
    async def scenario() -> None:
        async with Storage() as asked:
            answers = await asyncio.gather(
                *(asked.scan(str(there), deadline_s=60) for _ in range(100))
            )
            assert {len(answer.found) for answer in answers} == {1}

    asyncio.run(scenario())


def test_what_could_not_be_listed_is_transient(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def scenario() -> None:
        async with Storage() as asked:
            with pytest.raises(TransientError, match=r"^storage at .*file: .*Not a directory$"):
                await asked.scan(str(tmp_path / "file"), deadline_s=30)
            assert not (await asked.scan(str(tmp_path / "none"), deadline_s=30)).exists

    asyncio.run(scenario())


def test_a_server_that_died_is_replaced(there: Path) -> None:
    async def scenario() -> None:
        async with Storage() as asked:
            await asked.scan(str(there), deadline_s=30)
            assert asked._server is not None
            os.kill(asked._server.pid, signal.SIGKILL)
            asked._server.wait()
            assert (await asked.scan(str(there), deadline_s=30)).exists

    asyncio.run(scenario())


def test_a_path_that_hangs_costs_its_deadline_and_is_asked_again_when_it_is_free(
    there: Path,
) -> None:
    async def scenario() -> None:
        async with Storage() as asked:
            await asked.scan(str(there), deadline_s=30)
            assert asked._server is not None
            os.kill(asked._server.pid, signal.SIGSTOP)  # it forks nobody: no answer, no pid
            with pytest.raises(TransientError, match=r"did not answer within 0\.2 s"):
                await asked.scan(str(there), deadline_s=0.2)
            os.kill(asked._server.pid, signal.SIGCONT)
            assert (await asked.scan(str(there), deadline_s=30)).exists

    asyncio.run(scenario())


def test_nobody_is_sent_to_a_path_where_a_child_still_hangs(tmp_path: Path) -> None:
    path = str(tmp_path)
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
        os._exit(0)
    os.kill(pid, signal.SIGSTOP)
    storage._stuck[path] = storage._Stuck(os.pidfd_open(pid), time.time())

    async def scenario() -> None:
        async with Storage() as asked:
            with pytest.raises(TransientError, match="has not answered since"):
                await asked.scan(path, deadline_s=30)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            assert (await asked.scan(path, deadline_s=30)).exists

    asyncio.run(scenario())
