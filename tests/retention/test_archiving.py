"""Pruning with an archive: a session is deleted only after the archive contains it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.support.databases import SQL_DATABASES
from tests.support.retention import COUNTED, TOUCHES, Busy, ids_of, imported, limited_file_size, pruned, put, put_many
from vibeforge_sessions import (
    ArchiveError,
    InMemorySessionRepository,
    Session,
    SessionRepository,
    SQLAlchemySessionRepository,
)
from vibeforge_sessions.archive import ArchiveWriter
from vibeforge_sessions.retention import PruneReport
from vibeforge_sessions.testing.base import stored


def everything(repository: SessionRepository) -> dict[str, tuple[Session, object]]:
    found: dict[str, tuple[Session, object]] = {}
    for session_id in ids_of(repository):
        record = repository.get_record(session_id)
        assert record is not None
        found[session_id] = stored(repository, session_id), (record.version, record.updated_at, record.counts)
    return found


@pytest.mark.parametrize("name", ["sessions.jsonl", "sessions.jsonl.gz"])
def test_pruned_sessions_are_in_the_archive(repository: SessionRepository, name: str, tmp_path: Path) -> None:
    put_many(repository, 7, errors=1100)
    put(repository, "held", held=True)
    put(repository, "running", phase="EXECUTION")
    before = everything(repository)
    path = tmp_path / name
    assert pruned(repository, archive=path, dry_run=True).total == 7
    assert not path.exists()
    sizes: list[tuple[int, int]] = []

    def after_each(report: PruneReport) -> None:
        sizes.append((report.archived_bytes, path.stat().st_size))

    report = pruned(repository, archive=path, batch_size=3, on_batch=after_each)
    assert (report.total, report.archived, report.held) == (7, 7, 1)
    assert len(sizes) == 3
    assert all(reported == actual > 0 for reported, actual in sizes)
    assert ids_of(repository) == ["held", "running"]
    assert everything(imported(path)) == {name: each for name, each in before.items() if name.startswith("s")}
    # a second prune appends to the same file
    put_many(repository, 2)
    size = path.stat().st_size
    assert pruned(repository, archive=path).archived_bytes == path.stat().st_size - size > 0
    assert ids_of(imported(path)) == sorted(name for name in before if name.startswith("s"))


@pytest.mark.parametrize("touch", TOUCHES)
@pytest.mark.parametrize("moment", ["found", "read", "delete"])
def test_session_changed_during_prune_is_kept(
    repository: SessionRepository, touch: str, moment: str, tmp_path: Path
) -> None:
    ids = put_many(repository, 4)
    touched = {ids[1], ids[2]}

    def hook(session_id: str) -> None:
        if session_id in touched:
            TOUCHES[touch](repository, session_id)

    path = tmp_path / "archive"
    report = pruned(Busy(repository, moment, hook), archive=path, batch_size=3)
    assert (report.total, getattr(report, COUNTED[touch])) == (2, 2)
    assert report.held + report.touched + report.gone == 2
    assert ids_of(repository) == ([] if touch == "gone" else sorted(touched))
    archived = ids_of(imported(path))
    assert set(archived) >= set(ids) - touched
    assert report.archived == len(archived)
    if moment == "found":
        assert set(archived) == set(ids) - touched
    if moment == "delete":
        assert archived == ids


def test_session_that_cannot_be_archived_is_kept(tmp_path: Path) -> None:
    repository: SessionRepository = InMemorySessionRepository()
    ids = put_many(repository, 5)
    # the histories disagree with the counts of the record
    repository._sessions[ids[2]].errors.clear()  # type: ignore[attr-defined]
    report = pruned(repository, archive=tmp_path / "archive", batch_size=2)
    assert (report.total, report.failed, report.archived) == (4, 1, 4)
    assert [problem.session_id for problem in report.problems] == [ids[2]]
    assert ids_of(repository) == [ids[2]]


@pytest.mark.parametrize("storage", SQL_DATABASES)
@pytest.mark.parametrize("archived", [False, True], ids=["without_archive", "with_archive"])
def test_damaged_session_is_kept_and_others_are_pruned(
    storage: str, archived: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    engine = request.getfixturevalue(storage).new_engine()
    repository = SQLAlchemySessionRepository(engine)
    ids = put_many(repository, 6, errors=3)
    with engine.begin() as connection:
        connection.execute(text(f"DELETE FROM vibeforge_session_documents WHERE session_id = '{ids[1]}'"))
        connection.execute(text(f"DELETE FROM vibeforge_session_errors WHERE session_id = '{ids[4]}' AND position = 3"))
        connection.execute(text(f"UPDATE vibeforge_sessions SET phase = 'UNKNOWN' WHERE session_id = '{ids[0]}'"))
    report = pruned(repository, archive=tmp_path / "archive" if archived else None, batch_size=2)
    # a prune without an archive does not read histories, so it does not notice the missing error
    damaged = [ids[1], ids[4]] if archived else [ids[1]]
    assert [problem.session_id for problem in report.problems] == damaged
    assert (report.total, report.failed) == (5 - len(damaged), len(damaged))
    assert sorted(repository.list_sessions()) == sorted([ids[0], *damaged])
    engine.dispose()


# --- archive failures and interruptions ---


def test_unusable_archive_raises_and_no_session_is_deleted(repository: SessionRepository, tmp_path: Path) -> None:
    ids = put_many(repository, 3)
    foreign = tmp_path / "foreign"
    foreign.write_text("a letter to the editor\n")
    damaged = tmp_path / "damaged.gz"
    damaged.write_bytes(gzip.compress(b"{}\n"))
    for path in (tmp_path / "no folder" / "archive", tmp_path, foreign, damaged):
        with pytest.raises(ArchiveError) as caught:
            pruned(repository, archive=path)
        assert str(caught.value)
        assert ids_of(repository) == ids
    assert foreign.read_text() == "a letter to the editor\n"


def test_prune_to_open_archive_raises(repository: SessionRepository, tmp_path: Path) -> None:
    ids = put_many(repository, 3)
    path = tmp_path / "archive"
    with ArchiveWriter(path), pytest.raises(ArchiveError, match="another process"):
        pruned(repository, archive=path)
    assert ids_of(repository) == ids
    assert pruned(repository, archive=path).total == 3


def test_full_disk_ends_prune_and_a_second_prune_continues(repository: SessionRepository, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    others: SessionRepository = InMemorySessionRepository()
    put(others, "big", message="x" * 2_000_000)  # the archive must exceed the size of the database's files
    assert pruned(others, archive=path).total == 1
    ids = put_many(repository, 9, errors=50)
    reached: list[int] = []
    with limited_file_size(path.stat().st_size + 30_000), pytest.raises(ArchiveError, match="File too large"):
        pruned(repository, archive=path, batch_size=2, on_batch=lambda report: reached.append(report.total))
    left = ids_of(repository)
    assert left == ids[reached[-1] :]  # complete batches were deleted, and nothing of the failed batch
    assert 0 < reached[-1] < 9
    assert set(ids_of(imported(path))) == {"big", *ids} - set(left)
    assert pruned(repository, archive=path, batch_size=2).total == len(left)
    assert ids_of(imported(path)) == ["big", *ids]


def test_renamed_archive_ends_prune(repository: SessionRepository, tmp_path: Path) -> None:
    ids = put_many(repository, 9)
    path = tmp_path / "archive"
    with pytest.raises(ArchiveError):
        pruned(repository, archive=path, batch_size=2, on_batch=lambda _: path.rename(tmp_path / "rotated"))
    assert ids_of(repository) == ids[2:]
    assert ids_of(imported(tmp_path / "rotated"))[:2] == ids[:2]


def test_interrupted_prune_is_resumed(repository: SessionRepository, tmp_path: Path) -> None:
    ids = put_many(repository, 9)
    path = tmp_path / "archive"

    def interrupted(session_id: str) -> None:
        if session_id == ids[4]:  # archived but not yet deleted
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pruned(Busy(repository, "delete", interrupted), archive=path, batch_size=3)
    assert ids_of(repository) == ids[4:]
    assert ids_of(imported(path)) == ids[:6]
    assert pruned(repository, archive=path, batch_size=3).total == 5
    assert ids_of(imported(path)) == ids
