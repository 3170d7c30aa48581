"""`ArchiveWriter`: what `commit` returns is on the disk, whatever happens before, meanwhile and afterwards."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.archives import exported, fill, record_of
from tests.support.repositories import SQLiteFiles
from vibeforge_sessions import (
    ArchiveError,
    AsyncInMemorySessionRepository,
    InMemorySessionRepository,
    InvalidSessionError,
    SessionNotFoundError,
    SessionRepository,
    StaleSessionError,
    open_async_repository,
)
from vibeforge_sessions.archive import ArchiveWriter, Report, export_sessions, files, import_sessions
from vibeforge_sessions.repository.serialization import Record

NAMES = ["archive.jsonl", "archive.jsonl.gz"]


@pytest.fixture
def source() -> SessionRepository:
    repository = InMemorySessionRepository()
    fill(repository, 6, entries=3)
    return repository


@pytest.fixture(params=NAMES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def archived(path: Path, source: SessionRepository, *ids: str) -> None:
    """Add some sessions in one commit."""
    with ArchiveWriter(path) as archive:
        for session_id in ids:
            archive.add(source, record_of(source, session_id))
        assert [record.session_id for record in archive.commit()] == list(ids)


def held(path: Path) -> tuple[list[str], Report]:
    """Return the ids of an archive's sessions, and the report of their import."""
    repository = InMemorySessionRepository()
    report = import_sessions(repository, path)
    return sorted(repository.list_sessions()), report


# --- archive, then delete ---


def test_sessions_are_archived_and_deleted(repository: SessionRepository, path: Path) -> None:
    fill(repository, 4, entries=3)
    repository.release_session("s0")
    before = exported(repository)
    records = [record_of(repository, session_id) for session_id in repository.list_sessions()]
    with ArchiveWriter(path) as archive:
        for record in records:
            archive.add(repository, record)
        repository.append_log("s1", "touched")
        assert archive.commit() == records
        deleted = [repository.delete_session(record.session_id, unchanged_since=record) for record in records]
        assert deleted == [record.session_id != "s1" for record in records]
        assert archive.commit() == []
    other = InMemorySessionRepository()
    assert import_sessions(other, path).created == 5
    assert exported(other) == before


def test_batches_and_runs_follow_each_other(source: SessionRepository, path: Path) -> None:
    with ArchiveWriter(path) as archive:
        for session_id in ("s0", "s1"):
            archive.add(source, record_of(source, session_id))
            assert len(archive.commit()) == 1
    archived(path, source, "s2", "s3")
    assert held(path) == (["s0", "s1", "s2", "s3"], Report(created=4, errors=16, logs=16))
    assert path.read_bytes().startswith(b"\x1f\x8b") == (path.suffix == ".gz")


def test_an_archive_stays_what_it_is(source: SessionRepository, path: Path) -> None:
    archived(path, source, "s0")
    with ArchiveWriter(path, compress=path.suffix != ".gz") as archive:
        archive.add(source, record_of(source, "s1"))
        archive.commit()
    assert path.read_bytes().startswith(b"\x1f\x8b") == (path.suffix == ".gz")
    assert held(path)[0] == ["s0", "s1"]


def test_an_export_can_be_appended_to(source: SessionRepository, path: Path) -> None:
    export_sessions(source, path)
    source.create_session(session_id="late")
    archived(path, source, "late")
    ids, report = held(path)
    assert (len(ids), report.failed) == (8, 0)


def test_what_is_not_committed_is_not_there(source: SessionRepository, path: Path) -> None:
    archived(path, source, "s0")
    before = path.read_bytes()
    with ArchiveWriter(path) as archive:
        archive.add(source, record_of(source, "s1"))
    assert path.read_bytes() == before
    archive.close()
    assert path.read_bytes() == before


def test_one_that_cannot_be_added_leaves_the_others(source: SessionRepository, path: Path) -> None:
    touched, gone, long = (record_of(source, session_id) for session_id in ("s1", "s2", "s3"))
    source.modify_session("s1", lambda session: session.add_answer("more", 1))
    source.delete_session("s2")
    source.modify_session("s3", lambda session: session.add_answer("long", "x" * 10_000))
    long = record_of(source, "s3")
    with ArchiveWriter(path, longest_line=10_000) as archive:
        archive.add(source, record_of(source, "s0"))
        for record, error in ((touched, StaleSessionError), (gone, SessionNotFoundError), (long, InvalidSessionError)):
            with pytest.raises(error):
                archive.add(source, record)
        archive.add(source, record_of(source, "s4"))
        assert [record.session_id for record in archive.commit()] == ["s0", "s4"]
    assert held(path)[0] == ["s0", "s4"]


def test_a_record_of_entries_that_came_later(source: SessionRepository, path: Path) -> None:
    record = record_of(source, "s0")
    source.append_log("s0", "later")
    with ArchiveWriter(path) as archive:
        archive.add(source, record)
        archive.commit()
    other = InMemorySessionRepository()
    import_sessions(other, path)
    assert record_of(other, "s0").counts == record.counts


# --- what an interrupted run leaves behind ---


@pytest.mark.parametrize("name", NAMES)
def test_wherever_it_was_cut_off(source: SessionRepository, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    ends = [0]
    for ids in (("s0",), ("s1", "s2")):
        archived(path, source, *ids)
        ends.append(path.stat().st_size)
    whole = path.read_bytes()
    for length in range(0, len(whole) + 1, 29):
        path.write_bytes(whole[:length])
        ArchiveWriter(path).close()
        size = path.stat().st_size
        assert size <= length or path.read_bytes() == whole[:length] + b"\n"  # a closing line that lacks its end only
        assert size >= max(end for end in ends if end <= length)
        assert held(path)[1].failed == 0, length
        if path.suffix == ".gz":
            assert size in ends


def test_a_last_line_without_its_end_is_a_line(source: SessionRepository, tmp_path: Path) -> None:
    path = tmp_path / "x"
    archived(path, source, "s0")
    archived(path, source, "s1")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    archived(path, source, "s2")
    assert path.read_bytes().startswith(whole)
    assert held(path)[0] == ["s0", "s1", "s2"]


@pytest.mark.parametrize("more", ["s2", "empty"])
def test_it_goes_on_after_it_was_cut_off(source: SessionRepository, path: Path, more: str) -> None:
    archived(path, source, "s0")
    whole = path.read_bytes()
    archived(path, source, "s1")
    path.write_bytes(path.read_bytes()[:-5])  # longer than what comes next, or not
    archived(path, source, more)
    assert path.read_bytes().startswith(whole)
    ids, report = held(path)
    assert (ids, report.created, report.failed) == (sorted(["s0", more]), 2, 0)


KILLED = """
import sys
from pathlib import Path
from tests.support.archives import fill, record_of
from vibeforge_sessions import InMemorySessionRepository
from vibeforge_sessions.archive import ArchiveWriter
repository = InMemorySessionRepository()
fill(repository, 200, entries=3)
with ArchiveWriter(Path(sys.argv[1])) as archive:
    for number in range(200):
        archive.add(repository, record_of(repository, f"s{number}"))
        if number % 3 == 2:
            print(*(record.session_id for record in archive.commit()), flush=True)
"""


def test_a_process_that_is_killed(path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(5)]
        process.send_signal(signal.SIGKILL)
        told += process.stdout.readlines()
    committed = [session_id for line in told if line.endswith("\n") for session_id in line.split()]
    assert 15 <= len(committed) <= 198
    ArchiveWriter(path).close()
    ids, report = held(path)
    assert report.failed == 0
    assert set(committed) <= set(ids)


# --- what is refused, and stays as it is ---


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


FOREIGN = {
    "a text": b"precious",
    "one byte": b"x",
    "JSON": b'{"a":1}\n',
    "a gzip": gzip.compress(b"precious" * 1000),
    "the beginning of a gzip": gzip.compress(b"precious" * 1000)[:-4],
    "zeros": bytes(5000),
    "lines of ours and others": b'{"kind":"session"}\nprecious\n',
    "a long line": b'{"kind":"session",' + b"x" * 100_000,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_no_archive(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(FOREIGN[name])
    with pytest.raises(ArchiveError, match="nothing can be appended") as caught:
        ArchiveWriter(path, longest_line=50_000)
    assert path.read_bytes() == FOREIGN[name]
    assert "precious" not in str(caught.value)


@pytest.mark.parametrize("damage", ["before", "checksum", "middle", "behind", "zeros behind"])
@pytest.mark.parametrize("name", NAMES)
def test_an_archive_that_is_damaged(source: SessionRepository, tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    archived(path, source, "s0")
    start = path.stat().st_size
    archived(path, source, "s1")
    whole = path.read_bytes()
    damaged = {
        "before": flipped(whole, start // 2),
        "checksum": flipped(whole, len(whole) - 6),
        "middle": flipped(whole, (start + len(whole)) // 2),
        "behind": whole + b"precious\n",
        "zeros behind": whole + bytes(4096),
    }[damage]
    path.write_bytes(damaged)
    with pytest.raises(ArchiveError, match="nothing can be appended"):
        ArchiveWriter(path)
    assert path.read_bytes() == damaged


def test_a_gzip_of_another_tool_can_be_appended_to(source: SessionRepository, tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    file = io.BytesIO()
    with gzip.GzipFile(filename="a name", mode="wb", fileobj=file, mtime=1) as other:
        other.write(exported(source))
    path.write_bytes(file.getvalue())
    source.create_session(session_id="late")
    archived(path, source, "late")
    assert len(held(path)[0]) == 8


def test_one_writer_at_a_time(source: SessionRepository, path: Path) -> None:
    with ArchiveWriter(path) as archive:
        archive.add(source, record_of(source, "s0"))
        with pytest.raises(ArchiveError, match="another process"):
            ArchiveWriter(path)
        archive.commit()
    archived(path, source, "s1")
    assert held(path)[0] == ["s0", "s1"]


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "x"):
        with pytest.raises(ArchiveError, match="cannot be read or written"):
            ArchiveWriter(path)


# --- the disk does not keep what it was given ---


def test_what_the_disk_gives_back_is_compared(
    source: SessionRepository, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archived(path, source, "s0")
    before = path.read_bytes()
    honest = files.drop_page_cache

    def damaging(file: io.FileIO) -> None:
        path.write_bytes(flipped(path.read_bytes(), len(before) + 100))
        honest(file)

    with ArchiveWriter(path) as archive:
        monkeypatch.setattr(files, "drop_page_cache", damaging)
        archive.add(source, record_of(source, "s1"))
        with pytest.raises(ArchiveError):
            archive.commit()
        assert path.read_bytes() == before
        monkeypatch.undo()
        assert archive.commit() == []
        archive.add(source, record_of(source, "s2"))
        assert [record.session_id for record in archive.commit()] == ["s2"]
    assert held(path)[0] == ["s0", "s2"]


def test_a_file_that_is_moved_away(source: SessionRepository, path: Path) -> None:
    with ArchiveWriter(path) as archive:
        archive.add(source, record_of(source, "s0"))
        path.rename(path.with_name("rotated"))
        path.write_bytes(b"")
        with pytest.raises(ArchiveError):
            archive.commit()


# --- asyncio ---


async def add_all(path: Path, repository: AsyncInMemorySessionRepository, ids: list[str]) -> list[Record]:
    with ArchiveWriter(path) as archive:
        for session_id in ids:
            record = await repository.get_record(session_id)
            assert record is not None
            await archive.add_async(repository, record)
        return archive.commit()


def test_repositories_of_asyncio(source: SessionRepository, path: Path, sqlite_files: SQLiteFiles) -> None:
    async def run() -> None:
        async with await open_async_repository(sqlite_files.new_url()) as repository:
            for session_id in source.list_sessions():
                record = record_of(source, session_id)
                errors, logs = (
                    source.list_errors(session_id, limit=100),
                    source.list_logs(session_id, limit=100),
                )
                await repository.restore_record(record, errors, logs)
            records = await add_all(path, repository, source.list_sessions())  # type: ignore[arg-type]
            assert len(records) == 7
            gone = records[0]
            await repository.delete_session(gone.session_id)
            with pytest.raises(SessionNotFoundError), ArchiveWriter(path) as archive:
                await archive.add_async(repository, gone)

    asyncio.run(run())
    other = InMemorySessionRepository()
    import_sessions(other, path)
    assert exported(other) == exported(source)


# --- full ---

SMALL = 'mount -t tmpfs -o size=200k tmpfs "$0" && exec "$@"'
FULL = """
import secrets
import sys
from pathlib import Path
from tests.support.archives import exported, fill, record_of
from vibeforge_sessions import ArchiveError, InMemorySessionRepository
from vibeforge_sessions.archive import ArchiveWriter, export_sessions, import_sessions

path, source = Path(sys.argv[1]), InMemorySessionRepository()
fill(source, 100, entries=50)  # more than there is room for, compressed too
for number in range(100):
    for entry in range(50):
        source.append_log(f"s{number}", secrets.token_hex(60))

try:
    export_sessions(source, path)
except ArchiveError as error:
    assert "No space left on device" in str(error), error
else:
    raise AssertionError
assert not path.exists()
assert list(path.parent.iterdir()) == []

committed = []
with ArchiveWriter(path) as archive:
    try:
        for number in range(100):
            archive.add(source, record_of(source, f"s{number}"))
            if number % 3 == 2:
                committed += [record.session_id for record in archive.commit()]
    except ArchiveError as error:
        assert "No space left on device" in str(error), error
    else:
        raise AssertionError
assert 3 <= len(committed) < 100
repository = InMemorySessionRepository()
report = import_sessions(repository, path)
assert (report.created, report.failed) == (len(committed), 0), (report.created, report.failed, len(committed))
assert set(repository.list_sessions()) == set(committed)
print("full")
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_is_full(tmp_path: Path, name: str) -> None:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *user, "--mount", "sh", "-c", SMALL, str(tmp_path)]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small file system cannot be mounted here (unshare, mount)")
    program = [sys.executable, "-c", FULL, str(tmp_path / name)]
    done = subprocess.run([*command, *program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "full\n"), done.stderr
