"""What is exported, imported and exported again is the same, byte for byte, on each database and between any two."""

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


def test_out_and_in_and_out_again(new_repository: NewRepository) -> None:
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


def test_every_database_gives_the_same_bytes(repository: SessionRepository) -> None:
    source = InMemorySessionRepository()
    fill(source, entries=10)
    archive = exported(source)
    assert imported(archive, repository).created == 4
    assert exported(repository) == archive


def test_a_gzip_is_the_same_at_every_time(tmp_path: Path) -> None:
    repository = InMemorySessionRepository()
    fill(repository)
    export_sessions(repository, tmp_path / "one.jsonl.gz")
    imported(exported(repository), other := InMemorySessionRepository())
    export_sessions(other, tmp_path / "two", compress=True)
    assert (tmp_path / "one.jsonl.gz").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "two").read_bytes()[3:8] == bytes(5)  # neither a name nor a time
    assert gzip.decompress((tmp_path / "two").read_bytes()) == exported(repository)
    assert import_sessions(InMemorySessionRepository(), tmp_path / "two").created == 4  # whatever its name is
    export_sessions(repository, tmp_path / "plain.gz", compress=False)
    assert (tmp_path / "plain.gz").read_bytes() == exported(repository)


def test_the_oldest_come_first(repository: SessionRepository) -> None:
    for session_id, minutes in (("b", 5), ("c", 1), ("a", 5)):
        repository.create_session(Session(session_id=session_id, created_at=LONG_AGO + timedelta(minutes=minutes)))
    lines = map(json.loads, exported(repository).splitlines())
    assert [line["session_id"] for line in lines if line["kind"] == "session"] == ["c", "a", "b"]


def test_only_what_matches(repository: SessionRepository) -> None:
    fill(repository)
    lines = map(json.loads, exported(repository, filter=SessionFilter(has_errors=False)).splitlines())
    assert [line["session_id"] for line in lines if line["kind"] == "session"] == ["empty"]


def test_nothing_is_an_archive_too(repository: SessionRepository) -> None:
    archive = exported(repository)
    assert [json.loads(line)["kind"] for line in archive.splitlines()] == ["archive", "archive_end"]
    assert imported(archive) == imported(b"")


def test_the_lines() -> None:
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


@pytest.mark.parametrize(
    ("length", "count", "expected"),
    [
        (10, 2 * CHUNK + 1, [CHUNK, CHUNK, 1]),
        (CHUNK_SIZE // 4, 7, [4, 3]),
        (3 * CHUNK_SIZE, 2, [1, 1]),
    ],
)
def test_chunks_are_short(length: int, count: int, expected: list[int]) -> None:
    repository = InMemorySessionRepository()
    repository.create_session(Session(session_id="s", logs=["x" * length] * count))
    archive = exported(repository)
    chunks = [data for data in map(json.loads, archive.splitlines()) if data["kind"] == "logs"]
    assert [len(data["entries"]) for data in chunks] == expected
    assert max(map(len, archive.splitlines())) < CHUNK_SIZE + length + 100
    imported(archive, other := InMemorySessionRepository())
    assert exported(other) == archive


def test_long_entries_are_read_a_few_at_a_time() -> None:
    asked = []

    class Watched(InMemorySessionRepository):
        def list_logs(self, session_id: str, *, after: int = 0, limit: int = 100) -> list[str]:
            asked.append(limit)
            return super().list_logs(session_id, after=after, limit=limit)

    repository = Watched()
    repository.create_session(Session(session_id="long", logs=["x" * 1_000_000] * 100))
    exported(repository)
    assert max(asked[1:]) <= 5  # of which one is read again
    asked.clear()
    repository.delete_session("long")
    repository.create_session(Session(session_id="short", logs=["x"] * 5_000))
    exported(repository)
    assert len(asked) <= 6


def test_a_session_that_this_code_cannot_read_is_moved(new_repository: NewRepository) -> None:
    source, target = new_repository(), new_repository()
    fill(source)
    change(source, "s1", phase="DEPLOYMENT")
    archive = exported(source)
    assert imported(archive, target).created == 4
    assert exported(target) == archive
    assert record_of(target, "s1").content.phase == "DEPLOYMENT"


def test_fields_of_a_subclass_are_moved(new_repository: NewRepository) -> None:
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


def test_a_file_of_ones_own_is_left_open() -> None:
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
