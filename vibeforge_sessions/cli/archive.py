"""Commands ``sessions export``, ``import`` and ``copy``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, Final, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vibeforge_sessions.archive import OnConflict, Report, Result, copy_sessions, export_sessions, import_sessions
from vibeforge_sessions.archive.serialization import LONGEST_LINE
from vibeforge_sessions.cli.options import (
    CreatedBefore,
    CreatedFrom,
    HasErrors,
    Json,
    Phases,
    Schema,
    UpdatedBefore,
    UpdatedFrom,
    Url,
)
from vibeforge_sessions.cli.output import UNREADABLE
from vibeforge_sessions.cli.sessions import repository_on, sessions
from vibeforge_sessions.cli.terminal import safe, safe_json
from vibeforge_sessions.errors import ArchiveError
from vibeforge_sessions.repository.query import SessionFilter

_PREFIX: Final = "VIBEFORGE_SESSIONS_"
_STANDARD: Final = "-"
_MIB: Final = 1024 * 1024

_Conflict = Annotated[
    OnConflict,
    typer.Option(
        "--on-conflict",
        envvar=f"{_PREFIX}ON_CONFLICT",
        help="For a session that is stored with different content: report it and keep it (fail), keep it (skip), "
        "replace it (replace), or replace it if the new one was updated later (newer).",
    ),
]
_Stop = Annotated[
    bool, typer.Option("--stop-on-error", envvar=f"{_PREFIX}STOP_ON_ERROR", help="Stop at the first problem.")
]
_LongestLine = Annotated[
    int,
    typer.Option(
        envvar=f"{_PREFIX}LONGEST_LINE", min=1, help="Maximum size of a line in MiB. A line is held in memory."
    ),
]


@sessions.command("export")
def export_(
    file: Annotated[
        str,
        typer.Argument(
            envvar=f"{_PREFIX}EXPORT_FILE", help="A new file, compressed if its name ends in .gz; - is stdout."
        ),
    ],
    url: Url,
    schema: Schema = None,
    phase: Phases = None,
    created_from: CreatedFrom = None,
    created_before: CreatedBefore = None,
    updated_from: UpdatedFrom = None,
    updated_before: UpdatedBefore = None,
    has_errors: HasErrors = None,
    gzip: Annotated[
        bool | None,
        typer.Option("--gzip/--no-gzip", envvar=f"{_PREFIX}GZIP", help="Compress or not, whatever the name."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", envvar=f"{_PREFIX}OVERWRITE", help="Replace an existing file.")
    ] = False,
    stop_on_error: _Stop = False,
    longest_line: _LongestLine = LONGEST_LINE // _MIB,
    as_json: Json = False,
) -> None:
    """Write sessions to a file, oldest first, while the database is in use. The file appears once it is complete."""
    with repository_on(url, schema) as repository, _progress() as moving:
        asked = SessionFilter(
            phases=phase or None,
            created_from=created_from,
            created_before=created_before,
            updated_from=updated_from,
            updated_before=updated_before,
            has_errors=has_errors,
        )
        report = export_sessions(
            repository,
            sys.stdout.buffer if file == _STANDARD else file,
            asked,
            compress=gzip,
            overwrite=overwrite,
            stop_on_error=stop_on_error,
            on_session=moving.report_result,
            longest_line=longest_line * _MIB,
        )
    _show([report], dataclasses.asdict(report), as_json=as_json, err=file == _STANDARD)


@sessions.command("import")
def import_(
    files: Annotated[
        list[str],
        typer.Argument(
            envvar=f"{_PREFIX}IMPORT_FILES",
            help="Exports, archives, or the application's session_state.json; - is stdin.",
        ),
    ],
    url: Url,
    schema: Schema = None,
    on_conflict: _Conflict = "fail",
    stop_on_error: _Stop = False,
    longest_line: _LongestLine = LONGEST_LINE // _MIB,
    as_json: Json = False,
) -> None:
    """Store the sessions of files unchanged. After an interruption, run it again to continue."""
    reports: dict[str, Report] = {}
    with repository_on(url, schema) as repository, _progress() as moving:
        moving.expect(files)
        for name in files:
            report = reports[name] = Report()

            def count(result: Result, name: str = name, report: Report = report) -> None:
                report.add(result)
                moving.report_result(result, name)

            try:
                with moving.reading(name) as file:
                    import_sessions(
                        repository,
                        file,
                        on_conflict=on_conflict,
                        stop_on_error=stop_on_error,
                        on_session=count,
                        longest_line=longest_line * _MIB,
                    )
            except ArchiveError as error:
                if stop_on_error:
                    raise
                count(Result("failed", None, reason=error.reason, line=error.line))
    by_file = [{"file": name, **dataclasses.asdict(report)} for name, report in reports.items()]
    _show(list(reports.values()), by_file, as_json=as_json)


@sessions.command("copy")
def copy_(
    source: Annotated[
        str,
        typer.Option(
            "--from", envvar=f"{_PREFIX}COPY_FROM", help="The database to read. Prefer the variable to the option."
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            "--to", envvar=f"{_PREFIX}COPY_TO", help="The database to write. Prefer the variable to the option."
        ),
    ],
    from_schema: Annotated[
        str | None, typer.Option(envvar=f"{_PREFIX}FROM_SCHEMA", help="PostgreSQL only: the schema to read.")
    ] = None,
    to_schema: Annotated[
        str | None, typer.Option(envvar=f"{_PREFIX}TO_SCHEMA", help="PostgreSQL only: the schema to write.")
    ] = None,
    phase: Phases = None,
    created_from: CreatedFrom = None,
    created_before: CreatedBefore = None,
    updated_from: UpdatedFrom = None,
    updated_before: UpdatedBefore = None,
    has_errors: HasErrors = None,
    on_conflict: _Conflict = "fail",
    thorough: Annotated[
        bool,
        typer.Option(
            "--thorough",
            envvar=f"{_PREFIX}THOROUGH",
            help="Compare the histories, too, of sessions that are otherwise equal.",
        ),
    ] = False,
    stop_on_error: _Stop = False,
    as_json: Json = False,
) -> None:
    """Copy sessions unchanged, read each back and compare it. A second run transfers the changes since the first."""
    if (source, from_schema) == (target, to_schema):
        raise typer.BadParameter("these are the same database", param_hint="--to")
    with repository_on(source, from_schema) as old, repository_on(target, to_schema) as new, _progress() as moving:
        asked = SessionFilter(
            phases=phase or None,
            created_from=created_from,
            created_before=created_before,
            updated_from=updated_from,
            updated_before=updated_before,
            has_errors=has_errors,
        )
        report = copy_sessions(
            old,
            new,
            asked,
            on_conflict=on_conflict,
            thorough=thorough,
            stop_on_error=stop_on_error,
            on_session=moving.report_result,
        )
    _show([report], dataclasses.asdict(report), as_json=as_json)


class _ProgressReport:
    """Shows progress and problems on stderr."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._sessions = bar.add_task("sessions", total=None)
        self._bytes: TaskID | None = None
        self._size = 0

    def report_result(self, result: Result, file: str | None = None) -> None:
        """Count a session, and print its problem."""
        self._bar.advance(self._sessions)
        if result.outcome not in {"failed", "gone"}:
            return
        where = [
            *([] if file is None else [file]),
            *([] if result.line is None else [f"line {result.line}"]),
            *([] if result.session_id is None else [f"session {result.session_id!r}"]),
        ]
        text = ": ".join([result.outcome, *where, *([] if result.reason is None else [result.reason])])
        self._bar.console.print(safe(text), markup=False, highlight=False, soft_wrap=True)

    def expect(self, files: list[str]) -> None:
        """Show progress over the size of these files."""
        self._size = sum(path.stat().st_size for path in map(Path, files) if path.is_file())
        self._bytes = self._bar.add_task("bytes", total=self._size)

    @contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file."""
        if name == _STANDARD:
            yield sys.stdin.buffer
            return
        try:
            file = Path(name).open("rb", buffering=0)  # noqa: SIM115 (closed below)
        except OSError as error:
            raise ArchiveError(f"the file cannot be read: {error.strerror}") from error
        with file:
            yield cast("IO[bytes]", self._bar.wrap_file(file, total=self._size, task_id=self._bytes))


@contextmanager
def _progress() -> Iterator[_ProgressReport]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:,.0f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield _ProgressReport(bar)


def _show(reports: list[Report], value: Any, *, as_json: bool, err: bool = False) -> None:
    """Print the reports. Exit with code 8 if a session failed."""
    if as_json:
        typer.echo(safe_json(value, indent=2), err=err)
    else:
        counts = {
            name: sum(getattr(report, name) for report in reports)
            for name in ("exported", "created", "replaced", "unchanged", "skipped", "gone", "failed")
        }
        outcomes = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "none"
        errors, logs = (sum(getattr(report, name) for report in reports) for name in ("errors", "logs"))
        typer.echo(f"sessions: {outcomes}; with {errors:,} errors and {logs:,} log lines", err=err)
    if any(report.failed for report in reports):
        raise typer.Exit(UNREADABLE)
