"""Prunes that run concurrently with other prunes and writers, and prunes that are killed or canceled."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import Engine, make_url, text

from tests.support.databases import DATABASES, Storage
from tests.support.processes import begin, read_line, started
from tests.support.repositories import text_of
from tests.support.retention import (
    COUNTED,
    DONE,
    MONTH,
    TOUCHES,
    Busy,
    ids_of,
    imported,
    limited_file_size,
    pruned,
    put,
    put_many,
)
from vibeforge_sessions import (
    ArchiveError,
    AsyncInMemorySessionRepository,
    AsyncSessionRepository,
    InMemorySessionRepository,
    InvalidArgumentError,
    RetryPolicy,
    Session,
    SessionFilter,
    SessionRepository,
    SQLAlchemySessionRepository,
    open_async_repository,
    open_repository,
)
from vibeforge_sessions.archive import ArchiveWriter
from vibeforge_sessions.repository.aio import AsyncRepositoryAdapter
from vibeforge_sessions.retention import PruneReport, prune_async
from vibeforge_sessions.sql.engine import engine_on
from vibeforge_sessions.sql.tables import metadata

T = TypeVar("T")


@pytest.fixture(params=DATABASES)
def storage(request: pytest.FixtureRequest) -> Storage:
    found: Storage = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def repository(storage: Storage) -> Iterator[SessionRepository]:
    with storage.repositories() as new:
        yield new()


def url_of(engine: Engine) -> str:
    return text_of(engine.url)


# --- concurrent prunes ---


def test_concurrent_threads_prune_each_session_once(repository: SessionRepository) -> None:
    ids = put_many(repository, 120)
    for session_id in ids[::10]:
        repository.hold_session(session_id)
    begin = threading.Barrier(4)

    def run(number: int) -> PruneReport:
        begin.wait()
        return pruned(repository, batch_size=7 + number)

    with ThreadPoolExecutor(4) as threads:
        reports = list(threads.map(run, range(4)))
    assert sum(report.total for report in reports) == 108  # each session was deleted by exactly one prune
    assert ids_of(repository) == ids[::10]
    for report in reports:
        assert (report.touched, report.failed, report.held) == (0, 0, 12)


@contextmanager
def worker(url: str, batch_size: int, archive: str) -> Iterator[subprocess.Popen[str]]:
    with started("tests.support.prune_worker", url, str(batch_size), archive) as process:
        assert read_line(process) == "ready"
        yield process


def test_concurrent_processes_prune_each_session_once(engine: Engine, tmp_path: Path) -> None:
    repository = SQLAlchemySessionRepository(engine)
    ids = put_many(repository, 60)
    with ExitStack() as stack:
        archives = [tmp_path / f"{number}.gz" for number in range(2)]
        processes = [
            stack.enter_context(worker(url_of(engine), 4 + number, str(path))) for number, path in enumerate(archives)
        ]
        for process in processes:
            begin(process)
        reports = []
        for process in processes:
            output, errors = process.communicate()
            assert (process.returncode, errors) == (0, "")
            reports.append(json.loads(output.splitlines()[-1]))
    assert sum(report["phases"].get("COMPLETE", 0) for report in reports) == 60
    assert [report["failed"] + report["touched"] for report in reports] == [0, 0]
    assert ids_of(repository) == []
    assert {session_id for path in archives for session_id in ids_of(imported(path))} == set(ids)


# --- killed process ---


@pytest.mark.parametrize(("name", "batches"), [("-", 1), ("archive.gz", 3)], ids=["without_archive", "with_archive"])
def test_killed_prune_is_resumed(engine: Engine, batches: int, name: str, tmp_path: Path) -> None:
    repository = SQLAlchemySessionRepository(engine)
    ids = put_many(repository, 40, errors=5)
    archive = name if name == "-" else str(tmp_path / name)
    with worker(url_of(engine), 5, archive) as process:
        begin(process)
        deleted = [int(read_line(process)) for _ in range(batches)][-1]
        process.kill()
        process.communicate()  # the output ends when the program has been killed
    left = ids_of(repository)
    assert deleted == 5 * batches
    assert left == ids[40 - len(left) :]
    assert len(left) <= 40 - deleted
    for session_id in left:  # each remaining session is complete …
        session = repository.get_session(session_id)
        assert session is not None
        assert (len(session.error_history), len(session.logs), session.concept is not None) == (5, 1, True)
    with engine.connect() as connection:  # … and no rows of deleted sessions remain
        for table in metadata.tables.values():
            if "session_id" in table.columns:
                found = {row[0] for row in connection.execute(text(f"SELECT session_id FROM {table.name}"))}
                assert found == set(left)
    again = pruned(repository, archive=None if name == "-" else archive, batch_size=5)
    assert again.total == len(left)
    assert ids_of(repository) == []
    if name != "-":
        assert ids_of(imported(Path(archive))) == ids


# --- concurrent writers ---


@pytest.mark.parametrize("moment", ["found", "read", "delete"])
def test_prune_holds_no_lock_between_statements(engine: Engine, moment: str) -> None:
    """Write during a prune: an open transaction would block all writers on SQLite and writers of the rows elsewhere."""
    url = url_of(engine)
    with ExitStack() as stack:
        repository = stack.enter_context(open_repository(url))
        other_engine = stack.enter_context(engine_on(url))
        writer = SQLAlchemySessionRepository(other_engine, retry=RetryPolicy(deadline=2.0))
        ids = put_many(repository, 12)
        writer.create_session(session_id="live")

        def write(session_id: str) -> None:
            writer.append_log("live", session_id)
            writer.modify_session("live", lambda session: session.add_answer(session_id, 1), attempts=1)
            writer.append_error(ids[-1], "t", "m")  # the last session changes at every call

        report = pruned(Busy(repository, moment, write), batch_size=5)
        assert (report.total, report.failed) == (11, 0)
        assert ids_of(repository) == ["live", ids[-1]]
        assert {line.split("] ")[1] for line in writer.list_logs("live", limit=1000)} >= set(ids[:-1])


def test_writers_do_not_fail_during_prune(repository: SessionRepository) -> None:
    """Prune 150 sessions while two threads create sessions and append: no call fails, and no new entry is lost."""
    put_many(repository, 150, errors=0)
    done, failures, written = threading.Event(), [], [0, 0]
    used = [f"used-{number}" for number in range(20)]  # older than the limit until they are used again
    for session_id in used:
        put(repository, session_id, age=MONTH + MONTH / 30)

    def serve(worker: int) -> None:
        number = 0
        try:
            while not done.is_set() or number < len(used):
                session_id = used[number % len(used)]
                repository.append_log(session_id, f"{worker}")
                repository.append_error(session_id, "t", f"{worker}")
                repository.create_session(session_id=f"new-{worker}-{number}")
                number += 1
        except Exception as error:  # noqa: BLE001
            failures.append(error)
        written[worker] = number

    threads = [threading.Thread(target=serve, args=[worker]) for worker in range(2)]
    for session_id in used:
        repository.append_log(session_id, "used again")
    for thread in threads:
        thread.start()
    report = pruned(repository, batch_size=100, pause=1)
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert (report.total, report.failed) == (150, 0)
    assert len(ids_of(repository)) == len(used) + sum(written)
    for session_id in used:
        session = repository.get_session(session_id)
        assert session is not None
        assert len(session.logs) == len(session.error_history) + 1


@pytest.mark.parametrize(("pause", "expected"), [(0, []), (2.5, [2.5] * 4)], ids=["without_pause", "with_pause"])
def test_pause_is_multiple_of_each_deletion_time(
    pause: float, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository: SessionRepository = InMemorySessionRepository()
    put_many(repository, 4)
    slept: list[float] = []
    clock = iter(range(100))
    with monkeypatch.context() as patched:
        patched.setattr(time, "perf_counter", lambda: float(next(clock)))
        patched.setattr(time, "sleep", lambda seconds: slept.append(seconds) if seconds else None)
        assert pruned(repository, pause=pause, dry_run=True).total == 4
        assert slept == []
        assert pruned(repository, pause=pause).total == 4
    assert slept == expected


# --- asyncio ---


class NonBlockingAdapter(AsyncRepositoryAdapter[Session]):
    """Adapter that calls a synchronous repository directly on the event loop, without a thread."""

    async def _run(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return call(*args, **kwargs)


@asynccontextmanager
async def opened(url: str | None, driver: str) -> AsyncIterator[tuple[SessionRepository, AsyncSessionRepository]]:
    """Yield a synchronous and an asynchronous repository over the same storage."""
    if url is None:
        repository: SessionRepository = InMemorySessionRepository()
        yield repository, NonBlockingAdapter(repository)
        return
    async_url = text_of(make_url(url).set(drivername=driver)) if "+" in driver else url
    with open_repository(url) as repository:
        async with await open_async_repository(async_url) as asynchronous:
            yield repository, asynchronous


@pytest.mark.parametrize("archived", [False, True], ids=["without_archive", "with_archive"])
@pytest.mark.parametrize(
    "driver", ["memory", "sqlite", "mariadb", "postgresql+psycopg", "postgresql+asyncpg", "mariadb+asyncmy"]
)
def test_async_prune_deletes_matching_sessions(
    driver: str, archived: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    storage: Storage = request.getfixturevalue(driver.partition("+")[0])
    path = tmp_path / "archive.gz" if archived else None
    totals: list[int] = []

    async def main() -> None:
        async with opened(storage.new_url and storage.new_url(), driver) as (repository, asynchronous):
            ids = put_many(repository, 7, errors=70)
            put(repository, "held", held=True)
            put(repository, "young", age=MONTH / 2)
            for dry_run in (True, False):
                report = await prune_async(
                    asynchronous,
                    DONE,
                    older_than=MONTH,
                    batch_size=3,
                    archive=path,
                    dry_run=dry_run,
                    on_batch=lambda report: totals.append(report.total),
                )
                assert (report.total, report.held) == (7, 1)
                assert report.archived == (7 if archived and not dry_run else 0)
                assert ids_of(repository) == (sorted([*ids, "held", "young"]) if dry_run else ["held", "young"])
            if path is not None:
                assert ids_of(imported(path)) == ids

    asyncio.run(main())
    assert totals == [2, 5, 7] * 2  # the held session is the second oldest


@pytest.mark.parametrize("touch", TOUCHES)
@pytest.mark.parametrize("moment", ["found", "read", "delete"])
def test_session_changed_during_async_prune_is_kept(touch: str, moment: str) -> None:
    repository: SessionRepository = InMemorySessionRepository()
    put_many(repository, 3)
    busy = Busy(repository, moment, lambda session_id: TOUCHES[touch](repository, session_id))
    report = asyncio.run(prune_async(NonBlockingAdapter(busy), DONE, older_than=MONTH))
    assert (report.total, getattr(report, COUNTED[touch])) == (0, 3)


def test_async_prune_rejects_filter_without_phases() -> None:
    with pytest.raises(InvalidArgumentError, match="phases"):
        asyncio.run(prune_async(AsyncInMemorySessionRepository(), SessionFilter(), older_than=MONTH))


@pytest.mark.parametrize("moment", ["found", "read", "archive", "delete"])
@pytest.mark.parametrize("number", [0, 5, 8])
def test_canceled_prune_is_resumed(moment: str, number: int, tmp_path: Path) -> None:
    repository: SessionRepository = InMemorySessionRepository()
    ids = put_many(repository, 9, errors=2)
    path = tmp_path / "archive"

    async def main() -> None:
        def cancel(session_id: str) -> None:
            if session_id == ids[number]:
                task.cancel()

        asynchronous = NonBlockingAdapter(Busy(repository, moment, cancel))
        task = asyncio.ensure_future(
            prune_async(asynchronous, DONE, older_than=MONTH, batch_size=2, archive=path, pause=0)
        )
        with pytest.raises(asyncio.CancelledError):
            await task
        with ArchiveWriter(path):  # the canceled prune has closed the archive
            left = ids_of(repository)
        await asyncio.sleep(0)
        assert ids_of(repository) == left == ids[9 - len(left) :]
        assert set(ids_of(imported(path))) >= set(ids) - set(left)
        again = await prune_async(NonBlockingAdapter(repository), DONE, older_than=MONTH, archive=path)
        assert again.total == len(left)

    asyncio.run(main())
    assert ids_of(imported(path)) == ids


def test_prune_canceled_while_opening_archive_closes_it(tmp_path: Path) -> None:
    repository: SessionRepository = InMemorySessionRepository()
    ids = put_many(repository, 2)

    async def main() -> None:
        pruning = prune_async(NonBlockingAdapter(repository), DONE, older_than=MONTH, archive=tmp_path / "archive")
        task = asyncio.ensure_future(pruning)
        await asyncio.sleep(0)  # a thread is opening the file
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ArchiveWriter(tmp_path / "archive").close()  # succeeds while the task and its result still exist

    asyncio.run(main())
    assert ids_of(repository) == ids


def test_prune_canceled_during_pause_ends_immediately() -> None:
    repository: SessionRepository = InMemorySessionRepository()
    put_many(repository, 3)

    async def main() -> None:
        pruning = prune_async(NonBlockingAdapter(repository), DONE, older_than=MONTH, pause=1e12)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pruning, 0.5)

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 30
    assert len(ids_of(repository)) == 2


def test_full_disk_ends_async_prune(tmp_path: Path) -> None:
    repository: SessionRepository = InMemorySessionRepository()
    ids = put_many(repository, 5, errors=50)
    with limited_file_size(30_000), pytest.raises(ArchiveError, match="File too large"):
        asyncio.run(
            prune_async(
                NonBlockingAdapter(repository), DONE, older_than=MONTH, archive=tmp_path / "archive", batch_size=2
            )
        )
    left = ids_of(repository)
    assert left == ids[-len(left) :]
    assert 0 < len(left) < 5
    assert set(ids_of(imported(tmp_path / "archive"))) == set(ids) - set(left)
