"""Durability of `ArchiveWriter`: sessions that `commit` has returned survive interruptions and failures."""

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


def archive_sessions(path: Path, source: SessionRepository, *ids: str) -> None:
    """Append the sessions to the archive in one commit."""
    with ArchiveWriter(path) as archive:
        for session_id in ids:
            archive.add(source, record_of(source, session_id))
        assert [record.session_id for record in archive.commit()] == list(ids)


def contents(path: Path) -> tuple[list[str], Report]:
    """Return the ids of an archive's sessions, and the report of their import."""
    repository = InMemorySessionRepository()
    report = import_sessions(repository, path)
    return sorted(repository.list_sessions()), report


# --- appending and committing ---


def test_archived_sessions_can_be_deleted_and_restored(repository: SessionRepository, path: Path) -> None:
    fill(repository, 4, entries=3)
    repository.release_session("s0")
    before = exported(repository)
    records = [record_of(repository, session_id) for session_id in repository.list_sessions()]
    with ArchiveWriter(path) as archive:
        for record in records:
            archive.add(repository, record)
        repository.append_log("s1", "after archiving")
        assert archive.commit() == records
        deleted = [repository.delete_session(record.session_id, unchanged_since=record) for record in records]
        assert deleted == [record.session_id != "s1" for record in records]
        assert archive.commit() == []
    other = InMemorySessionRepository()
    assert import_sessions(other, path).created == 5
    assert exported(other) == before


def test_commits_and_writers_append_to_one_archive(source: SessionRepository, path: Path) -> None:
    with ArchiveWriter(path) as archive:
        for session_id in ("s0", "s1"):
            archive.add(source, record_of(source, session_id))
            assert len(archive.commit()) == 1
    archive_sessions(path, source, "s2", "s3")
    assert contents(path) == (["s0", "s1", "s2", "s3"], Report(created=4, errors=16, logs=16))
    assert path.read_bytes().startswith(b"\x1f\x8b") == (path.suffix == ".gz")


def test_existing_archive_keeps_its_compression(source: SessionRepository, path: Path) -> None:
    archive_sessions(path, source, "s0")
    with ArchiveWriter(path, compress=path.suffix != ".gz") as archive:
        archive.add(source, record_of(source, "s1"))
        archive.commit()
    assert path.read_bytes().startswith(b"\x1f\x8b") == (path.suffix == ".gz")
    assert contents(path)[0] == ["s0", "s1"]


def test_archive_writer_appends_to_export(source: SessionRepository, path: Path) -> None:
    export_sessions(source, path)
    source.create_session(session_id="late")
    archive_sessions(path, source, "late")
    ids, report = contents(path)
    assert (len(ids), report.failed) == (8, 0)


def test_uncommitted_sessions_are_not_written(source: SessionRepository, path: Path) -> None:
    archive_sessions(path, source, "s0")
    before = path.read_bytes()
    with ArchiveWriter(path) as archive:
        archive.add(source, record_of(source, "s1"))
    assert path.read_bytes() == before
    archive.close()
    assert path.read_bytes() == before


def test_failed_add_keeps_other_sessions(source: SessionRepository, path: Path) -> None:
    stale, deleted, long = (record_of(source, session_id) for session_id in ("s1", "s2", "s3"))
    source.modify_session("s1", lambda session: session.add_answer("more", 1))
    source.delete_session("s2")
    source.modify_session("s3", lambda session: session.add_answer("long", "x" * 10_000))
    long = record_of(source, "s3")
    with ArchiveWriter(path, longest_line=10_000) as archive:
        archive.add(source, record_of(source, "s0"))
        for record, error in ((stale, StaleSessionError), (deleted, SessionNotFoundError), (long, InvalidSessionError)):
            with pytest.raises(error):
                archive.add(source, record)
        archive.add(source, record_of(source, "s4"))
        assert [record.session_id for record in archive.commit()] == ["s0", "s4"]
    assert contents(path)[0] == ["s0", "s4"]


def test_entries_appended_after_record_was_read_are_left_out(source: SessionRepository, path: Path) -> None:
    record = record_of(source, "s0")
    source.append_log("s0", "later")
    with ArchiveWriter(path) as archive:
        archive.add(source, record)
        archive.commit()
    other = InMemorySessionRepository()
    import_sessions(other, path)
    assert record_of(other, "s0").counts == record.counts


# --- truncation recovery ---


@pytest.mark.parametrize("name", NAMES)
def test_archive_truncated_at_any_byte_keeps_committed_sessions(
    source: SessionRepository, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    ends = [0]
    for ids in (("s0",), ("s1", "s2")):
        archive_sessions(path, source, *ids)
        ends.append(path.stat().st_size)
    whole = path.read_bytes()
    for length in range(0, len(whole) + 1, 29):
        path.write_bytes(whole[:length])
        ArchiveWriter(path).close()
        size = path.stat().st_size
        assert size <= length or path.read_bytes() == whole[:length] + b"\n"  # only the final line break was missing
        assert size >= max(end for end in ends if end <= length)
        assert contents(path)[1].failed == 0, length
        if path.suffix == ".gz":
            assert size in ends


def test_last_line_without_line_break_is_kept(source: SessionRepository, tmp_path: Path) -> None:
    path = tmp_path / "x"
    archive_sessions(path, source, "s0")
    archive_sessions(path, source, "s1")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    archive_sessions(path, source, "s2")
    assert path.read_bytes().startswith(whole)
    assert contents(path)[0] == ["s0", "s1", "s2"]


@pytest.mark.parametrize("more", ["s2", "empty"])
def test_truncated_archive_is_appended_to(source: SessionRepository, path: Path, more: str) -> None:
    archive_sessions(path, source, "s0")
    whole = path.read_bytes()
    archive_sessions(path, source, "s1")
    path.write_bytes(path.read_bytes()[:-5])  # the next session is shorter or longer than the rest
    archive_sessions(path, source, more)
    assert path.read_bytes().startswith(whole)
    ids, report = contents(path)
    assert (ids, report.created, report.failed) == (sorted(["s0", more]), 2, 0)


COMMITS = """
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


def test_committed_sessions_survive_sigkill(path: Path) -> None:
    command = [sys.executable, "-c", COMMITS, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(5)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    committed = [session_id for line in lines if line.endswith("\n") for session_id in line.split()]
    assert 15 <= len(committed) <= 198
    ArchiveWriter(path).close()
    ids, report = contents(path)
    assert report.failed == 0
    assert set(committed) <= set(ids)


# --- rejected files ---


def with_inverted_byte(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]


FOREIGN = {
    "text": b"precious",
    "one_byte": b"x",
    "json": b'{"a":1}\n',
    "foreign_gzip": gzip.compress(b"precious" * 1000),
    "truncated_foreign_gzip": gzip.compress(b"precious" * 1000)[:-4],
    "zeros": bytes(5000),
    "archive_line_and_foreign_line": b'{"kind":"session"}\nprecious\n',
    "line_over_length_limit": b'{"kind":"session",' + b"x" * 100_000,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_file_is_rejected_and_not_changed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(FOREIGN[name])
    with pytest.raises(ArchiveError, match="nothing can be appended") as caught:
        ArchiveWriter(path, longest_line=50_000)
    assert path.read_bytes() == FOREIGN[name]
    assert "precious" not in str(caught.value)


@pytest.mark.parametrize("damage", ["first_session", "checksum", "middle", "foreign_line_appended", "zeros_appended"])
@pytest.mark.parametrize("name", NAMES)
def test_damaged_archive_is_rejected_and_not_changed(
    source: SessionRepository, tmp_path: Path, name: str, damage: str
) -> None:
    path = tmp_path / name
    archive_sessions(path, source, "s0")
    start = path.stat().st_size
    archive_sessions(path, source, "s1")
    whole = path.read_bytes()
    damaged = {
        "first_session": with_inverted_byte(whole, start // 2),
        "checksum": with_inverted_byte(whole, len(whole) - 6),
        "middle": with_inverted_byte(whole, (start + len(whole)) // 2),
        "foreign_line_appended": whole + b"precious\n",
        "zeros_appended": whole + bytes(4096),
    }[damage]
    path.write_bytes(damaged)
    with pytest.raises(ArchiveError, match="nothing can be appended"):
        ArchiveWriter(path)
    assert path.read_bytes() == damaged


def test_gzip_of_another_tool_is_appended_to(source: SessionRepository, tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    file = io.BytesIO()
    with gzip.GzipFile(filename="a name", mode="wb", fileobj=file, mtime=1) as other:
        other.write(exported(source))
    path.write_bytes(file.getvalue())
    source.create_session(session_id="late")
    archive_sessions(path, source, "late")
    assert len(contents(path)[0]) == 8


def test_second_writer_of_one_archive_raises(source: SessionRepository, path: Path) -> None:
    with ArchiveWriter(path) as archive:
        archive.add(source, record_of(source, "s0"))
        with pytest.raises(ArchiveError, match="another process"):
            ArchiveWriter(path)
        archive.commit()
    archive_sessions(path, source, "s1")
    assert contents(path)[0] == ["s0", "s1"]


def test_unwritable_path_raises(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "x"):
        with pytest.raises(ArchiveError, match="cannot be read or written"):
            ArchiveWriter(path)


# --- storage faults ---


def test_commit_rejects_data_that_reads_back_differently(
    source: SessionRepository, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive_sessions(path, source, "s0")
    before = path.read_bytes()
    original = files.drop_page_cache

    def damaging(file: io.FileIO) -> None:
        path.write_bytes(with_inverted_byte(path.read_bytes(), len(before) + 100))
        original(file)

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
    assert contents(path)[0] == ["s0", "s2"]


def test_commit_to_renamed_file_raises(source: SessionRepository, path: Path) -> None:
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


def test_async_repository_is_archived(source: SessionRepository, path: Path, sqlite_files: SQLiteFiles) -> None:
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
            deleted = records[0]
            await repository.delete_session(deleted.session_id)
            with pytest.raises(SessionNotFoundError), ArchiveWriter(path) as archive:
                await archive.add_async(repository, deleted)

    asyncio.run(run())
    other = InMemorySessionRepository()
    import_sessions(other, path)
    assert exported(other) == exported(source)


# --- full disk ---

MOUNT_SMALL_DISK = 'mount -t tmpfs -o size=200k tmpfs "$0" && exec "$@"'
FILL_DISK = """
import secrets
import sys
from pathlib import Path
from tests.support.archives import exported, fill, record_of
from vibeforge_sessions import ArchiveError, InMemorySessionRepository
from vibeforge_sessions.archive import ArchiveWriter, export_sessions, import_sessions

path, source = Path(sys.argv[1]), InMemorySessionRepository()
fill(source, 100, entries=50)  # more than fits on the disk, even compressed
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
def test_full_disk_raises_and_keeps_committed_sessions(tmp_path: Path, name: str) -> None:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *user, "--mount", "sh", "-c", MOUNT_SMALL_DISK, str(tmp_path)]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small file system cannot be mounted here (unshare, mount)")
    program = [sys.executable, "-c", FILL_DISK, str(tmp_path / name)]
    done = subprocess.run([*command, *program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "full\n"), done.stderr
