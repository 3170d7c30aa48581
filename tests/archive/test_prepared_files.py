"""Files that another user has prepared at the path of an export or an archive."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.archives import fill, record_of
from vibeforge_sessions import ArchiveError, InMemorySessionRepository, SessionRepository
from vibeforge_sessions.archive import ArchiveWriter, export_sessions, import_sessions

pytestmark = pytest.mark.skipif(os.name != "posix", reason="owners and permissions are POSIX")

PRECIOUS = b"precious"


def symbolic_link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def symbolic_link_to_nothing(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("missing"))


def hard_link(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def writable_by_group(path: Path, victim: Path) -> None:
    path.touch()
    path.chmod(0o660)


def writable_by_others(path: Path, victim: Path) -> None:
    path.touch()
    path.chmod(0o602)


def owned_by_another_user(path: Path, victim: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    path.touch(mode=0o600)
    os.chown(path, 65534, 65534)


def named_pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path, 0o600)


PREPARED: dict[Callable[[Path, Path], None], str] = {
    symbolic_link: "symbolic link",
    symbolic_link_to_nothing: "symbolic link",
    hard_link: "hard link",
    writable_by_group: "writable by other users",
    writable_by_others: "writable by other users",
    owned_by_another_user: "another user",
    named_pipe: "regular file",
}
prepared_files = pytest.mark.parametrize(("prepare", "reason"), PREPARED.items(), ids=[f.__name__ for f in PREPARED])


@pytest.fixture
def repository() -> SessionRepository:
    repository = InMemorySessionRepository()
    fill(repository, 3)
    return repository


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """Return a file, and check afterwards that it was not changed."""
    path = tmp_path / "victim"
    path.write_bytes(PRECIOUS)
    path.chmod(0o600)
    yield path
    assert path.read_bytes() == PRECIOUS
    assert not path.with_name("missing").exists()


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@prepared_files
def test_archive_rejects_a_prepared_file(
    prepare: Callable[[Path, Path], None], reason: str, repository: SessionRepository, victim: Path, tmp_path: Path
) -> None:
    path = tmp_path / "archive"
    prepare(path, victim)
    before = os.lstat(path)
    with pytest.raises(ArchiveError, match=reason) as caught:
        ArchiveWriter(path)
    assert str(caught.value).startswith("nothing can be appended to this file: it ")
    assert str(tmp_path) not in str(caught.value)
    assert os.path.samestat(os.lstat(path), before)
    path.unlink()
    with ArchiveWriter(path) as archive:
        archive.add(repository, record_of(repository, "s0"))
        assert len(archive.commit()) == 1


@pytest.mark.usefixtures("no_umask")
def test_new_files_are_readable_by_their_owner_only(repository: SessionRepository, tmp_path: Path) -> None:
    export_sessions(repository, tmp_path / "x")
    ArchiveWriter(tmp_path / "archive").close()
    assert [os.lstat(tmp_path / name).st_mode & 0o777 for name in ("x", "archive")] == [0o600, 0o600]


def test_archive_readable_by_others_is_appended_to(repository: SessionRepository, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    for session_id in ("s0", "s1"):
        with ArchiveWriter(path) as archive:
            archive.add(repository, record_of(repository, session_id))
            archive.commit()
        path.chmod(0o644)
    assert path.stat().st_mode & 0o777 == 0o644
    assert import_sessions(InMemorySessionRepository(), path).created == 2


@pytest.mark.parametrize("dangling", [False, True], ids=["existing_target", "dangling"])
def test_export_replaces_symbolic_link_at_its_path(
    dangling: bool, repository: SessionRepository, victim: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x"
    (symbolic_link_to_nothing if dangling else symbolic_link)(path, victim)
    export_sessions(repository, path, overwrite=True)
    assert not path.is_symlink()
    assert import_sessions(InMemorySessionRepository(), path).created == 4


EXPORT = """
import sys
from vibeforge_sessions import ArchiveError, InMemorySessionRepository
from vibeforge_sessions.archive import export_sessions
repository = InMemorySessionRepository()
for number in range(50):
    repository.create_session(session_id=f"s{number}")
for number in range(100):
    try:
        export_sessions(repository, sys.argv[1], overwrite=True)
    except ArchiveError as error:
        assert "another process" in str(error), error
"""


def test_concurrent_exports_to_one_file_leave_complete_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    command = [sys.executable, "-c", EXPORT, str(path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[1] for process in processes] == ["", "", ""]
    assert import_sessions(InMemorySessionRepository(), path).created == 50
    assert [each.name for each in tmp_path.iterdir()] == ["x"]
