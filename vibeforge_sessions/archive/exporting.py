"""Export of sessions from a repository to a file."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from vibeforge_sessions.archive import serialization
from vibeforge_sessions.archive.bundle import pack
from vibeforge_sessions.archive.files import compressing, disk_errors, is_compressed, sync_folder
from vibeforge_sessions.archive.report import OnSession, Report, Result, transfer_each
from vibeforge_sessions.errors import ArchiveError
from vibeforge_sessions.repository.base import SessionRepository
from vibeforge_sessions.repository.query import SessionFilter


def export_sessions(
    repository: SessionRepository[Any],
    target: str | os.PathLike[str] | IO[bytes],
    filter: SessionFilter | None = None,  # noqa: A002 (the contract's name)
    *,
    compress: bool | None = None,
    overwrite: bool = False,
    stop_on_error: bool = False,
    on_session: OnSession | None = None,
    longest_line: int = serialization.LONGEST_LINE,
) -> Report:
    """Write sessions to a file, oldest first, each in one consistent state; the store may be in use meanwhile.

    The file gets its name once it is complete. Until then its name has a random part and ends in ``.part``. An
    interrupted export removes the incomplete file, unless the process is killed. The file is always a new one, readable
    by its owner only. Exporting, importing and exporting again gives equal bytes.

    A session that is deleted before it is read is ``gone``. A session is ``failed`` if it is updated so often that no
    consistent state can be read, or if it violates the rules for sessions. Such sessions are left out, and the others
    are exported.

    :param target: a path, or a binary file that is open for writing and stays open.
    :param filter: conditions on the sessions; all sessions by default.
    :param compress: whether to compress with gzip; by default if the path ends in ``.gz``.
    :param overwrite: replace an existing file.
    :param stop_on_error: raise the first problem instead of leaving the session out. Then no file is written.
    :param longest_line: maximum length of a line in bytes. A session that needs a longer line is ``failed``.
    :raises ArchiveError: the file exists, or cannot be written.
    """
    with disk_errors(), ExitStack() as files:
        if isinstance(target, (str, os.PathLike)):
            compress = is_compressed(Path(target), compress)
            target = files.enter_context(_new_file(Path(target), overwrite=overwrite))
        else:
            files.callback(target.flush)
        file = files.enter_context(compressing(target)) if compress else target
        file.write(serialization.encode_line({"kind": "archive", "format": serialization.FORMAT}))
        transfer = functools.partial(_export, repository, file, longest_line)
        ids = repository.list_sessions(filter)
        report = transfer_each(ids, transfer, stop_on_error=stop_on_error, on_session=on_session)
        file.write(serialization.encode_line({"kind": "archive_end", "sessions": report.exported}))
    return report


def _export(repository: SessionRepository[Any], file: IO[bytes], longest: int, session_id: str) -> Result:
    bundle = pack(repository, session_id, longest)
    if bundle is None:
        return Result("gone", session_id)
    with bundle:
        file.writelines(bundle.lines())
        return Result("exported", session_id, *bundle.record.counts)


@contextmanager
def _new_file(path: Path, *, overwrite: bool) -> Iterator[IO[bytes]]:
    """Provide a file that gets its name once it is complete."""
    if path.exists() and not overwrite:
        raise _exists_error()
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", suffix=".part", delete=False) as part:
        try:
            yield part
            part.flush()
            os.fsync(part.fileno())
            if overwrite:
                Path(part.name).replace(path)
            else:
                _rename_to_new(Path(part.name), path)
            sync_folder(path.parent)
        finally:
            Path(part.name).unlink(missing_ok=True)


def _rename_to_new(part: Path, path: Path) -> None:
    """Rename a file, but only to a name that does not exist. Unlike a rename, a hard link never replaces a file."""
    try:
        path.hardlink_to(part)
    except FileExistsError:
        raise _exists_error() from None
    except OSError:  # this file system has no hard links
        if path.exists():
            raise _exists_error() from None
        part.replace(path)


def _exists_error() -> ArchiveError:
    return ArchiveError("a file with this name already exists: choose another name, or allow overwriting")
