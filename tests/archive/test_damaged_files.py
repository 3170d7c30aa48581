"""Imports of damaged, foreign and truncated files: reported lines and reasons, and complete sessions only."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.archives import SECRET, closed, edited, exported, filled_archive, imported, record_of
from vibeforge_sessions import ArchiveError, InMemorySessionRepository, SessionRepository
from vibeforge_sessions.archive import Report, Result, export_sessions, import_sessions
from vibeforge_sessions.archive.report import MAX_PROBLEMS

# Lines of the archive: 1 begins it; 2-5 are s2 (header, errors, logs, end); 6-9 are s1; 10-13 are s0; 14-15 are empty;
# 16 ends it
Lines = list[bytes]


def set_value(index: int, *path: str | int, value: object) -> Callable[[Lines], Lines]:
    def edit(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return lambda lines: edited(lines, index, edit)


def drop_key(index: int, key: str) -> Callable[[Lines], Lines]:
    return lambda lines: edited(lines, index, lambda data: data.pop(key))


def replace_line(index: int, *by: bytes) -> Callable[[Lines], Lines]:
    return lambda lines: [*lines[:index], *by, *lines[index + 1 :]]


def change_one_letter(lines: Lines) -> Lines:
    assert b"it broke" in lines[6]
    return [*lines[:6], lines[6].replace(b"it broke", b"it bRoke"), *lines[7:]]


DAMAGES: dict[str, tuple[Callable[[Lines], Lines], int, str]] = {
    # the change to s1, the reported line, and the reported reason
    "truncated_line": (lambda lines: [*lines[:6], lines[6][:-9] + b"\n", *lines[7:]], 7, "not a JSON text"),
    "changed_letter": (change_one_letter, 9, "checksum"),
    "wrong_checksum": (set_value(8, "sha256", value="0" * 64), 9, "checksum"),
    "missing_checksum": (drop_key(8, "sha256"), 9, "closing line"),
    "end_of_other_session": (set_value(8, "session_id", value="s2"), 9, "closing line"),
    "wrong_count_in_end": (set_value(8, "errors", value=2), 9, "number of errors"),
    "wrong_count_in_header": (set_value(5, "logs", value=2), 9, "number of logs"),
    "missing_closing_line": (replace_line(8), 8, "ends early: the closing line"),
    "missing_header": (replace_line(5), 6, "belongs to no session"),
    "missing_errors": (replace_line(6), 8, "number of errors"),
    "duplicate_logs": (lambda lines: [*lines[:7], lines[7], *lines[7:]], 9, "not the next chunk of logs"),
    "unknown_format": (set_value(5, "format", value=2), 6, "version 2"),
    "boolean_format": (set_value(5, "format", value=True), 6, "format version"),
    "missing_field": (drop_key(5, "phase"), 6, "not a header"),
    "missing_document": (
        lambda lines: edited(lines, 5, lambda data: data["documents"].pop("answers")),
        6,
        "not a header",
    ),
    "invalid_time": (set_value(5, "created_at", value=f"{SECRET} ago"), 6, "ISO 8601"),
    "naive_time": (set_value(5, "updated_at", value="2001-02-03T04:05:06"), 6, "aware"),
    "invalid_id": (set_value(5, "session_id", value=f"{SECRET}!"), 6, "session_id"),
    "text_as_version": (set_value(5, "version", value=SECRET), 6, "version: must be an integer"),
    "negative_count": (set_value(5, "errors", value=-1), 6, "error_count"),
    "invalid_phase": (set_value(5, "phase", value=SECRET + "\n"), 6, "phase"),
    "document_of_wrong_type": (set_value(5, "documents", "answers", value=[SECRET]), 6, "answers: must be a dict"),
    "foreign_entry": (set_value(6, "entries", 0, value={SECRET: SECRET}), 7, "chunk of errors"),
    "entry_field_of_wrong_type": (set_value(6, "entries", 0, "task_id", value=7), 7, "chunk of errors"),
    "entry_with_extra_field": (set_value(6, "entries", 0, "more", value=SECRET), 7, "chunk of errors"),
    "invalid_entry_time": (set_value(6, "entries", 0, "timestamp", value=SECRET), 7, "chunk of errors"),
    "log_of_wrong_type": (set_value(7, "entries", 0, value=7), 8, "chunk of logs"),
    "empty_chunk": (set_value(7, "entries", value=[]), 8, "chunk of logs"),
    "oversized_chunk": (set_value(7, "entries", value=["x"] * 1001), 8, "chunk of logs"),
    "invalid_utf8": (replace_line(6, b"\xff\xfe\x00\n"), 7, "not a JSON text"),
    "nan": (set_value(5, "documents", "answers", "z", value=float("nan")), 6, "not a JSON text"),
    "deep_nesting": (replace_line(5, b"[" * 100_000 + b"\n"), 6, "not a JSON text"),
    "foreign_json": (replace_line(6, json.dumps({SECRET: 1}).encode() + b"\n"), 7, "not a line of an archive"),
    "unknown_kind": (set_value(6, "kind", value=SECRET), 7, "not a line of an archive"),
    "number_as_line": (replace_line(6, b"7\n"), 7, "not a line of an archive"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_session_is_reported_and_others_are_imported(memory_repository: SessionRepository, damage: str) -> None:
    apply, line, reason = DAMAGES[damage]
    archive = b"".join(apply(filled_archive()))
    report = imported(archive, memory_repository)
    assert [(problem.line, problem.outcome) for problem in report.problems] == [(line, "failed")], report.problems
    assert reason in str(report.problems[0].reason)
    assert SECRET not in str(report)
    assert (report.created, report.failed) == (3, 1)
    assert sorted(memory_repository.list_sessions()) == ["empty", "s0", "s2"]
    with pytest.raises(ArchiveError) as caught:
        imported(archive, stop_on_error=True)
    assert caught.value.line == line
    assert SECRET not in str(caught.value)


@pytest.fixture
def memory_repository() -> SessionRepository:
    """Return a repository in memory: a session reaches the database only after its lines were validated."""
    return InMemorySessionRepository()


@pytest.mark.parametrize("damage", ["wrong_checksum", "missing_closing_line"])
def test_damaged_session_does_not_replace_stored_one(repository: SessionRepository, damage: str) -> None:
    before = repository.create_session(session_id="s1")
    report = imported(b"".join(DAMAGES[damage][0](filled_archive())), repository, on_conflict="replace")
    assert (report.created, report.replaced, report.failed) == (3, 0, 1)
    assert repository.get_session("s1") == before


# --- foreign content ---


def test_foreign_lines_between_sessions_are_reported() -> None:
    lines = filled_archive()
    foreign = [b"hello\n", b"{}\n", b"\n", b" \t\r\n", b'"x"\n', b'{"kind":"session"}\n', b'{"kind":7}\n']
    archive = b"".join([*foreign, *lines[:5], *foreign, *lines[5:]])
    report = imported(archive)
    assert (report.created, report.failed) == (4, 10)
    assert [problem.line for problem in report.problems] == [1, 2, 5, 6, 7, 13, 14, 17, 18, 19]


def test_foreign_file_is_reported() -> None:
    for foreign in (
        b"\x00\x01\x02" * 1000,
        b"name,age\nx,1\n",
        b'{"a":1}\n{"b":2}\n',
        b"[1,2]",
        b"{",
        b'{"a":{"b":1}}',
    ):
        report = imported(foreign)
        assert report.created == 0
        assert report.failed >= 1


def test_windows_line_ends_are_accepted() -> None:
    repository = InMemorySessionRepository()
    assert imported(b"".join(filled_archive()).replace(b"\n", b"\r\n"), repository).created == 4


def test_all_problems_are_counted_and_the_first_are_kept() -> None:
    results: list[Result] = []
    report = imported(b"x\n" * (2 * MAX_PROBLEMS), on_session=results.append)
    assert (report.failed, len(report.problems), len(results)) == (2 * MAX_PROBLEMS, MAX_PROBLEMS, 2 * MAX_PROBLEMS)


# --- truncated files ---


def test_file_truncated_at_any_byte_reports_one_problem() -> None:
    archive = b"".join(filled_archive())
    whole = imported(archive).created
    for length in range(1, len(archive) - 1, 37):
        repository = InMemorySessionRepository()
        report = imported(archive[:length], repository)
        assert report.failed == 1, length
        assert report.created == len(repository.list_sessions()) < whole + 1
    assert imported(archive[:-1]).failed == 0  # only the final line break is missing


def test_export_truncated_between_sessions_is_reported() -> None:
    lines = filled_archive()
    report = imported(b"".join(lines[:9]))
    assert (report.created, report.failed) == (2, 1)
    assert "the last line of the export that begins at line 1" in str(report.problems[0].reason)
    assert report.problems[0].line == 9
    both = imported(b"".join([*lines[:9], *lines]), on_conflict="newer")
    assert [problem.line for problem in both.problems] == [9]
    lost = imported(b"".join([*lines[:5], *lines[9:]]))
    assert "number of sessions" in str(lost.problems[0].reason)


def test_concatenated_exports_are_imported() -> None:
    archive = b"".join(filled_archive())
    assert imported(archive + archive, on_conflict="newer").failed == 0
    together = gzip.compress(archive) + gzip.compress(b"".join(filled_archive(1)))
    assert imported(together, on_conflict="newer").failed == 0


@pytest.mark.parametrize("keep", [0.1, 0.7])
def test_import_of_truncated_gzip_is_resumable(repository: SessionRepository, keep: float) -> None:
    whole = b"".join(filled_archive(10, 20))
    archive = gzip.compress(whole)
    report = imported(archive[: int(len(archive) * keep)], repository)
    (problem,) = report.problems
    assert "gzip file is damaged or ends early" in str(problem.reason)
    assert problem.line is not None
    assert report.created == len(repository.list_sessions()) < 11
    second = imported(archive, repository)
    assert (second.unchanged, second.created, second.failed) == (report.created, 11 - report.created, 0)
    assert exported(repository) == whole


@pytest.mark.parametrize("offset", [0.3, 0.9])
def test_damaged_gzip_is_reported(offset: float) -> None:
    archive = bytearray(gzip.compress(b"".join(filled_archive(50, 20))))
    archive[int(len(archive) * offset)] ^= 0xFF
    report = imported(bytes(archive))
    assert report.failed >= 1
    with pytest.raises(ArchiveError):
        imported(bytes(archive), stop_on_error=True)


def test_garbage_after_gzip_is_reported() -> None:
    report = imported(gzip.compress(b"".join(filled_archive())) + b"garbage")
    assert (report.created, report.failed) == (4, 1)


# --- long lines ---

LONG = """
import sys
sys.path.insert(0, sys.argv[1])
from vibeforge_sessions import InMemorySessionRepository
from vibeforge_sessions.archive import import_sessions

report = import_sessions(InMemorySessionRepository(), sys.argv[2])
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(report.created, report.failed, report.problems[0].line, peak // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory is read from /proc")
def test_line_of_one_gigabyte_needs_little_memory(tmp_path: Path) -> None:
    lines = filled_archive()
    archive = tmp_path / "archive"
    with archive.open("wb") as file:
        file.writelines([*lines[:6], lines[6][:40]])
        file.seek(1024**3, io.SEEK_CUR)  # a hole in a sparse file
        file.writelines([b"\n", *lines[7:]])
    command = [sys.executable, "-c", LONG, str(ROOT), str(archive)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    created, failed, line, peak = map(int, done.stdout.split())
    assert (created, failed, line) == (3, 1, 7)
    assert peak < 200


def test_lines_over_length_limit_are_reported() -> None:
    lines = filled_archive(1, 100)
    longest = max(map(len, lines))
    assert imported(b"".join(lines), longest_line=longest).failed == 0
    report = imported(b"".join(lines), longest_line=longest - 1)
    assert (report.created, report.failed) == (1, 1)
    assert f"longer than {longest - 1} bytes" in str(report.problems[0].reason)
    imported(b"".join(lines), repository := InMemorySessionRepository())
    assert exported(repository, longest_line=longest) == b"".join(lines)
    file = io.BytesIO()
    limited = export_sessions(repository, file, longest_line=longest - 1)
    assert (limited.exported, limited.failed, limited.problems[0].session_id) == (1, 1, "s0")
    assert imported(file.getvalue(), longest_line=longest - 1).created == 1


# --- files that cannot be read or written ---


def test_unreadable_file_raises_archive_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "x"):
        with pytest.raises(ArchiveError, match="cannot be read or written") as caught:
            import_sessions(InMemorySessionRepository(), path)
        assert str(tmp_path) not in str(caught.value)


def test_unwritable_file_raises_archive_error(tmp_path: Path) -> None:
    repository = InMemorySessionRepository()
    for path in (tmp_path / "missing" / "x", tmp_path / ("n" * 300)):
        with pytest.raises(ArchiveError, match="cannot be read or written"):
            export_sessions(repository, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_hard_links", [True, False], ids=["hard links", "no hard links"])
def test_file_that_appears_during_an_export_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_hard_links: bool
) -> None:
    repository: SessionRepository = InMemorySessionRepository()
    repository.create_session()
    path = tmp_path / "sessions.jsonl"
    if not has_hard_links:
        monkeypatch.setattr(os, "link", reject_link)
    with pytest.raises(ArchiveError, match="already exists"):
        export_sessions(repository, path, on_session=lambda _: path.write_text("of another process"))
    assert path.read_text() == "of another process"
    assert list(tmp_path.iterdir()) == [path]
    path.unlink()
    assert export_sessions(repository, path).exported == 1
    assert list(tmp_path.iterdir()) == [path]


def reject_link(*_arguments: object, **_options: object) -> None:
    raise PermissionError(errno.EPERM, "no hard links")


def test_existing_file_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("precious")
    with pytest.raises(ArchiveError, match="already"):
        export_sessions(InMemorySessionRepository(), path)
    assert path.read_text() == "precious"
    export_sessions(InMemorySessionRepository(), path, overwrite=True)
    assert imported(path.read_bytes()) == Report()


def test_second_of_two_exports_to_one_file_does_not_replace_first(tmp_path: Path) -> None:
    repository = InMemorySessionRepository()
    repository.create_session(session_id="s")

    def export_to_same_file(_: object) -> None:
        export_sessions(repository, tmp_path / "x")

    with pytest.raises(ArchiveError, match="already"):
        export_sessions(repository, tmp_path / "x", on_session=export_to_same_file)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert import_sessions(InMemorySessionRepository(), tmp_path / "x").created == 1


def test_interrupted_export_leaves_no_file(tmp_path: Path) -> None:
    repository = InMemorySessionRepository()
    for number in range(5):
        repository.create_session(session_id=f"s{number}")

    def stop(_: object) -> None:
        [part] = tmp_path.iterdir()
        assert part.name.startswith("x")
        assert part.suffix == ".part"
        raise KeyboardInterrupt

    for name in ("x", "x.gz"):
        with pytest.raises(KeyboardInterrupt):
            export_sessions(repository, tmp_path / name, on_session=stop)
        assert list(tmp_path.iterdir()) == []
        export_sessions(repository, tmp_path / name)
        assert import_sessions(InMemorySessionRepository(), tmp_path / name).created == 5
        (tmp_path / name).unlink()


def test_export_with_stop_on_error_raises_first_problem(tmp_path: Path) -> None:
    from vibeforge_sessions import InvalidSessionError  # noqa: PLC0415

    repository = InMemorySessionRepository()
    repository.create_session(session_id="s")
    with pytest.raises(InvalidSessionError):
        export_sessions(repository, tmp_path / "x", longest_line=100, stop_on_error=True)
    assert not (tmp_path / "x").exists()


def test_export_is_readable_by_owner_only(tmp_path: Path) -> None:
    export_sessions(InMemorySessionRepository(), tmp_path / "x")
    assert (tmp_path / "x").stat().st_mode & 0o077 == 0


def test_problem_of_invalid_entry_hides_its_value() -> None:
    source = InMemorySessionRepository()
    imported(b"".join(filled_archive()), source)
    lines = edited(filled_archive(), 7, lambda data: data.update(entries=[f"{SECRET} \x00"]))
    report = imported(b"".join(closed(record_of(source, "s1"), *lines[5:8])))
    assert report.failed == 1
    assert SECRET not in str(report)
