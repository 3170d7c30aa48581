"""Commands ``sessions export``, ``import`` and ``copy``."""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import Annotated, Any, Final, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TimeElapsedColumn

from vibeforge_sessions.archive import (
    OnConflict,
    Outcome,
    Report,
    Result,
    copy_sessions,
    export_sessions,
    import_sessions,
)
from vibeforge_sessions.archive.serialization import LONGEST_LINE
from vibeforge_sessions.cli import options
from vibeforge_sessions.cli.groups import Repository, repository_on, sessions
from vibeforge_sessions.cli.output import UNREADABLE, safe, show
from vibeforge_sessions.errors import ArchiveError
from vibeforge_sessions.repository.query import SessionFilter

_STANDARD: Final = "-"
_MIB: Final = 1024 * 1024

_Conflict = Annotated[
    OnConflict,
    typer.Option(
        help="For a session that is stored with different content: report it and keep it (fail), keep it (skip), "
        "replace it (replace), or replace it if the new one was updated later (newer)."
    ),
]
_Stop = Annotated[bool, typer.Option("--stop-on-error", help="Stop at the first problem.")]
_LongestLine = Annotated[int, typer.Option(min=1, help="Maximum size of a line in MiB. A line is held in memory.")]
_PREFER: Final = "Prefer the variable to the option."


@sessions.command("export")
def export_(
    asked: SessionFilter,
    file: Annotated[
        str,
        typer.Argument(
            envvar="VIBEFORGE_SESSIONS_EXPORT_FILE", help="A new file, compressed if its name ends in .gz; - is stdout."
        ),
    ],
    repository: Repository,
    gzip: Annotated[bool | None, typer.Option(help="Compress or not, whatever the name.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    stop_on_error: _Stop = False,
    longest_line: _LongestLine = LONGEST_LINE // _MIB,
    as_json: options.Json = False,
) -> None:
    """Write sessions to a file, oldest first, while the database is in use. The file appears once it is complete."""
    with _TransferProgress() as progress:
        report = export_sessions(
            repository,
            sys.stdout.buffer if file == _STANDARD else file,
            asked,
            compress=gzip,
            overwrite=overwrite,
            stop_on_error=stop_on_error,
            on_session=progress.report_result,
            longest_line=longest_line * _MIB,
        )
    _show(report, report, as_json=as_json, err=file == _STANDARD)


@sessions.command("import")
def import_(
    files: Annotated[
        list[str],
        typer.Argument(
            envvar="VIBEFORGE_SESSIONS_IMPORT_FILES",
            help="Exports, archives, or the application's session_state.json; - is stdin.",
        ),
    ],
    repository: Repository,
    on_conflict: _Conflict = "fail",
    stop_on_error: _Stop = False,
    longest_line: _LongestLine = LONGEST_LINE // _MIB,
    as_json: options.Json = False,
) -> None:
    """Store the sessions of files unchanged. After an interruption, run it again to continue."""
    reports: dict[str, Report] = {}
    with _TransferProgress() as progress:
        for name in files:
            on_session = functools.partial(progress.report_result, file=name)
            try:
                reports[name] = import_sessions(
                    repository,
                    sys.stdin.buffer if name == _STANDARD else name,
                    on_conflict=on_conflict,
                    stop_on_error=stop_on_error,
                    on_session=on_session,
                    longest_line=longest_line * _MIB,
                )
            except ArchiveError as error:
                if stop_on_error:
                    raise
                reports[name] = Report()
                reports[name].add(Result("failed", None, reason=error.reason), on_session)
    by_file = [{"file": name, **dataclasses.asdict(report)} for name, report in reports.items()]
    _show(progress.total, by_file, as_json=as_json)


@sessions.command("copy")
def copy_(
    asked: SessionFilter,
    copy_from: Annotated[str, typer.Option("--from", help=f"The database to read. {_PREFER}")],
    copy_to: Annotated[str, typer.Option("--to", help=f"The database to write. {_PREFER}")],
    from_schema: Annotated[str | None, typer.Option(help="PostgreSQL only: the schema to read.")] = None,
    to_schema: Annotated[str | None, typer.Option(help="PostgreSQL only: the schema to write.")] = None,
    on_conflict: _Conflict = "fail",
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Compare the histories, too, of sessions that are otherwise equal.")
    ] = False,
    stop_on_error: _Stop = False,
    as_json: options.Json = False,
) -> None:
    """Copy sessions unchanged, read each back and compare it. A second run transfers the changes since the first."""
    if (copy_from, from_schema) == (copy_to, to_schema):
        raise typer.BadParameter("must not be the same database as --from", param_hint="--to")
    with (
        repository_on(copy_from, from_schema) as old,
        repository_on(copy_to, to_schema) as new,
        _TransferProgress() as progress,
    ):
        report = copy_sessions(
            old,
            new,
            asked,
            on_conflict=on_conflict,
            thorough=thorough,
            stop_on_error=stop_on_error,
            on_session=progress.report_result,
        )
    _show(report, report, as_json=as_json)


class _TransferProgress(Progress):
    """Shows progress and problems on stderr."""

    def __init__(self) -> None:
        columns = "{task.description}", BarColumn(), "{task.completed:,.0f}", TimeElapsedColumn()
        super().__init__(*columns, console=Console(stderr=True))
        self._sessions = self.add_task("sessions", total=None)
        self.total = Report()

    def report_result(self, result: Result, file: str | None = None) -> None:
        """Count a session, and print its problem if it has one."""
        self.advance(self._sessions)
        self.total.add(result)
        if result.outcome in {"failed", "gone"}:
            line = None if result.line is None else f"line {result.line}"
            session = None if result.session_id is None else f"session {result.session_id!r}"
            text = ": ".join(filter(None, [result.outcome, file, line, session, result.reason]))
            self.console.print(safe(text), markup=False, highlight=False, soft_wrap=True)


def _show(report: Report, value: Any, *, as_json: bool, err: bool = False) -> None:
    """Print the numbers of a report. Exit with code 8 if a session failed."""
    counts = {name: getattr(report, name) for name in get_args(Outcome)}
    outcomes = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "none"
    text = f"sessions: {outcomes}; with {report.errors:,} errors and {report.logs:,} log lines"
    show(value, [text], as_json=as_json, err=err)
    if report.failed:
        raise typer.Exit(UNREADABLE)
