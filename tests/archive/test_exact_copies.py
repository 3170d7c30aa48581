"""Exactness of exports: imported sessions export to the same bytes, on each database."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.archives import LONG_AGO, change, exported, fill, histories, imported, record_of
from vibeforge_sessions import ErrorEntry, InMemorySessionRepository, Session, SessionFilter, SessionRepository
from vibeforge_sessions.archive import export_sessions, import_sessions
from vibeforge_sessions.archive.serialization import CHUNK, CHUNK_SIZE
from vibeforge_sessions.testing import NewRepository


def test_export_import_export_is_exact(new_repository: NewRepository) -> None:
    source, target = new_repository(), new_repository()
    fill(source, 2, entries=1_100)
    archive = exported(source)
    report = imported(archive, target)
    assert (report.created, report.failed, report.errors, report.logs) == (3, 0, 2202, 2202)
    assert exported(target) == archive
    for session_id in source.list_sessions():
        before, after = record_of(source, session_id), record_of(target, session_id)
        assert histories(target, session_id) == histories(source, session_id)
        assert (after.version, after.created_at, after.updated_at) == (
            before.version,
            before.created_at,
            before.updated_at,
        )
        assert (after.held_at, after.counts, after.content) == (before.held_at, before.counts, before.content)
        assert after.write_id not in {"", before.write_id}
        assert before.write_id.encode() not in archive
        assert target.get_session(session_id) == source.get_session(session_id)
    target.modify_session("s1", lambda session: session.add_error("t", "more"))
    assert record_of(target, "s1").counts == (1102, 1101)


def test_export_is_identical_on_every_database(repository: SessionRepository) -> None:
    source = InMemorySessionRepository()
    fill(source, entries=10)
    archive = exported(source)
    assert imported(archive, repository).created == 4
    assert exported(repository) == archive


def test_gzip_export_is_deterministic(tmp_path: Path) -> None:
    repository = InMemorySessionRepository()
    fill(repository)
    export_sessions(repository, tmp_path / "one.jsonl.gz")
    imported(exported(repository), other := InMemorySessionRepository())
    export_sessions(other, tmp_path / "two", compress=True)
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "two").read_bytes()[3:8] == bytes(5)  # the gzip header has neither file name nor time
    assert gzip.decompress((tmp_path / "two").read_bytes()) == exported(repository)
    assert import_sessions(InMemorySessionRepository(), tmp_path / "two").created == 4  # recognized without the suffix
    export_sessions(repository, tmp_path / "plain.gz", compress=False)
    assert (tmp_path / "plain.gz").read_bytes() == exported(repository)


def test_export_is_ordered_by_creation_time_and_id(repository: SessionRepository) -> None:
    for session_id, minutes in (("b", 5), ("c", 1), ("a", 5)):
        repository.create_session(Session(session_id=session_id, created_at=LONG_AGO + timedelta(minutes=minutes)))
    lines = map(json.loads, exported(repository).splitlines())
    assert [line["session_id"] for line in lines if line["kind"] == "session"] == ["c", "a", "b"]


def test_export_contains_only_sessions_that_match_the_filter(repository: SessionRepository) -> None:
    fill(repository)
    lines = map(json.loads, exported(repository, filter=SessionFilter(has_errors=False)).splitlines())
    assert [line["session_id"] for line in lines if line["kind"] == "session"] == ["empty"]


def test_export_of_empty_repository_is_an_archive(repository: SessionRepository) -> None:
    archive = exported(repository)
    assert [json.loads(line)["kind"] for line in archive.splitlines()] == ["archive", "archive_end"]
    assert imported(archive) == imported(b"")


def test_exported_lines_follow_the_format() -> None:
    repository = InMemorySessionRepository()
    repository.create_session(
        Session(
            session_id="s",
            created_at=LONG_AGO,
            updated_at=LONG_AGO,
            answers={"q": "ü"},
            error_history=[ErrorEntry(LONG_AGO, "t", "m", "IDEA")],
            logs=["l"],
        )
    )
    session = (
        b'{"kind":"session","format":1,"session_id":"s","created_at":"2001-02-03T04:05:06.000789+00:00",'
        b'"updated_at":"2001-02-03T04:05:06.000789+00:00","held_at":null,"version":1,"phase":"QUESTIONNAIRE",'
        b'"current_question_index":0,"active_task_id":null,"errors":1,"logs":1,"documents":{"answers":{"q":"\\u00fc"},'
        b'"intent_profile":null,"build_spec":null,"concept":null,"task_graph":null,"completed_task_ids":[],'
        b'"failed_task_ids":[],"pending_clarification":null,"clarification_answer":null,"extension":null}}\n'
        b'{"kind":"errors","after":0,"entries":[{"timestamp":"2001-02-03T04:05:06.000789+00:00","task_id":"t",'
        b'"error_message":"m","phase":"IDEA"}]}\n'
        b'{"kind":"logs","after":0,"entries":["l"]}\n'
    )
    checksum = hashlib.sha256(session).hexdigest()
    assert exported(repository).decode("ascii") == (
        '{"kind":"archive","format":1}\n'
        f"{session.decode()}"
        f'{{"kind":"end","session_id":"s","errors":1,"logs":1,"sha256":"{checksum}"}}\n'
        '{"kind":"archive_end","sessions":1}\n'
    )


def test_checksum_is_that_of_the_lines_in_the_file() -> None:
    """Another version may have written the same session in other bytes."""
    repository = InMemorySessionRepository()
    repository.create_session(session_id="s")
    start, header, end, last = exported(repository).splitlines(keepends=True)
    header = header.replace(b":", b": ", 1)
    checksum = hashlib.sha256(header).hexdigest()
    end = json.dumps({**json.loads(end), "sha256": checksum}).encode() + b"\n"
    assert imported(start + header + end + last).created == 1


@pytest.mark.parametrize(
    ("length", "count", "expected"),
    [
        (10, 2 * CHUNK + 1, [CHUNK, CHUNK, 1]),
        (CHUNK_SIZE // 4, 7, [4, 3]),
        (3 * CHUNK_SIZE, 2, [1, 1]),
    ],
    ids=["many_entries", "long_entries", "oversized_entries"],
)
def test_chunks_are_limited_in_entries_and_size(length: int, count: int, expected: list[int]) -> None:
    repository = InMemorySessionRepository()
    repository.create_session(Session(session_id="s", logs=["x" * length] * count))
    archive = exported(repository)
    chunks = [data for data in map(json.loads, archive.splitlines()) if data["kind"] == "logs"]
    assert [len(data["entries"]) for data in chunks] == expected
    assert max(map(len, archive.splitlines())) < CHUNK_SIZE + length + 100
    imported(archive, other := InMemorySessionRepository())
    assert exported(other) == archive


def test_export_reads_few_long_entries_per_query() -> None:
    limits = []

    class RecordingRepository(InMemorySessionRepository):
        def list_logs(self, session_id: str, *, after: int = 0, limit: int = 100) -> list[str]:
            limits.append(limit)
            return super().list_logs(session_id, after=after, limit=limit)

    repository = RecordingRepository()
    repository.create_session(Session(session_id="long", logs=["x" * 1_000_000] * 100))
    exported(repository)
    assert max(limits[1:]) <= 5  # including one entry that is read twice
    limits.clear()
    repository.delete_session("long")
    repository.create_session(Session(session_id="short", logs=["x"] * 5_000))
    exported(repository)
    assert len(limits) <= 6


def test_session_with_unknown_phase_is_transferred(new_repository: NewRepository) -> None:
    source, target = new_repository(), new_repository()
    fill(source)
    change(source, "s1", phase="DEPLOYMENT")
    archive = exported(source)
    assert imported(archive, target).created == 4
    assert exported(target) == archive
    assert record_of(target, "s1").content.phase == "DEPLOYMENT"


def test_subclass_fields_are_transferred(new_repository: NewRepository) -> None:
    class Extended(Session):
        is_aborted: bool = False
        deep: object = None

    source, target = new_repository(session_type=Extended), new_repository(session_type=Extended)
    deep: object = 1
    for _ in range(200):
        deep = [deep]
    source.create_session(Extended(session_id="s", is_aborted=True, deep=deep))
    archive = exported(source)
    assert imported(archive, target).created == 1
    assert target.get_session("s") == source.get_session("s")
    assert exported(target) == archive


def test_file_object_of_caller_is_not_closed() -> None:
    repository = InMemorySessionRepository()
    fill(repository)
    for compress in (False, True):
        file = io.BytesIO(b"before ")
        file.seek(0, io.SEEK_END)
        export_sessions(repository, file, compress=compress)
        assert file.getvalue().startswith(b"before ")
        file.seek(len(b"before "))
        assert import_sessions(InMemorySessionRepository(), file).created == 4
        assert not file.closed
