"""Commands ``sessions prune``, ``hold`` and ``release``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from vibeforge_sessions.cli.options import Json, Schema, Url, Yes
from vibeforge_sessions.cli.output import UNREADABLE, ask_confirmation, show
from vibeforge_sessions.cli.sessions import repository_on, sessions
from vibeforge_sessions.cli.tables import size
from vibeforge_sessions.cli.terminal import safe
from vibeforge_sessions.cli.times import clock, parse_age
from vibeforge_sessions.errors import SessionNotFoundError
from vibeforge_sessions.repository.query import MAX_PAGE, SessionFilter
from vibeforge_sessions.retention import BATCH_SIZE, PAUSE, OnBatch, PruneReport, prune

PrunedPhases = Annotated[
    list[str], typer.Option("--phase", metavar="PHASE", help="Only sessions in this phase. Repeatable.")
]
_OLDER_THAN: Final = "Only sessions without an update for this long: 12h, 30d or 8w."
OlderThan = Annotated[timedelta, typer.Option(parser=parse_age, metavar="AGE", help=_OLDER_THAN)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Delete nothing. Print what would be deleted.")]
Archive = Annotated[
    Path | None,
    typer.Option(
        help="Write each session to this file, and read it back, before it is deleted. Compressed if it ends in .gz."
    ),
]
BatchSize = Annotated[
    int, typer.Option(min=1, max=MAX_PAGE, help="Number of sessions that are found, and archived, at once.")
]
Pause = Annotated[
    float,
    typer.Option(
        min=0, help="Pause after each deletion for other writers, as a multiple of the time that the deletion took."
    ),
]
SessionIds = Annotated[list[str], typer.Argument(metavar="ID…", envvar="VIBEFORGE_SESSIONS_SESSION_IDS")]


@sessions.command("prune")
def prune_sessions(
    url: Url,
    phase: PrunedPhases,
    older_than: OlderThan,
    dry_run: DryRun = False,
    archive: Archive = None,
    batch_size: BatchSize = BATCH_SIZE,
    pause: Pause = PAUSE,
    yes: Yes = False,
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Show which old sessions of the given phases are not held, ask for confirmation, and delete them."""
    asked = SessionFilter(phases=phase)
    with repository_on(url, schema) as repository:
        run = functools.partial(prune, repository, older_than=older_than, batch_size=batch_size)
        if not yes and not dry_run:
            planned = run(asked, dry_run=True)
            typer.echo(_summary(planned), err=True)
            if planned.total and not ask_confirmation():
                raise typer.Exit(1)
            asked = replace(asked, updated_before=planned.before)  # delete no more than the user has confirmed
        with _progress() as on_batch:
            report = run(asked, dry_run=dry_run, archive=archive, pause=pause, on_batch=on_batch)
        _show(report, as_json=as_json)
    if report.failed:
        raise typer.Exit(UNREADABLE)


@sessions.command()
def hold(url: Url, ids: SessionIds, schema: Schema = None, as_json: Json = False) -> None:
    """Protect sessions from pruning until they are released."""
    with repository_on(url, schema) as repository:
        _each(repository.hold_session, ids, "held", as_json=as_json)


@sessions.command()
def release(url: Url, ids: SessionIds, schema: Schema = None, as_json: Json = False) -> None:
    """End the hold on sessions."""
    with repository_on(url, schema) as repository:
        _each(repository.release_session, ids, "released", as_json=as_json)


def _each(call: Callable[[str], None], ids: list[str], done: str, *, as_json: bool) -> None:
    """Call a function with each id. After an unknown id, continue with the other ids."""
    known: list[str] = []
    for session_id in ids:
        try:
            call(session_id)
        except SessionNotFoundError as error:
            typer.echo(f"error: {error}", err=True)
            continue
        known.append(session_id)
        if not as_json:
            typer.echo(f"{done} {session_id}")
    if as_json:
        show({done: known})
    if len(known) < len(ids):
        raise typer.Exit(1)


@contextmanager
def _progress() -> Iterator[OnBatch]:
    """Show the counts so far, and print them if the prune is interrupted."""
    shown: PruneReport | None = None

    def on_batch(report: PruneReport) -> None:
        nonlocal shown
        shown = report
        status.update(_counts(report))

    try:
        with Console(stderr=True).status("", spinner="line") as status:
            yield on_batch
    except BaseException:
        if shown is not None:
            typer.echo(f"before the interruption: {_counts(shown)}", err=True)
        raise


def _show(report: PruneReport, *, as_json: bool) -> None:
    if as_json:
        show(asdict(report) | {"total": report.total})
        return
    typer.echo(_summary(report))
    for problem in report.problems:
        typer.echo(f"{problem.session_id}: {safe(problem.reason)}", err=True)
    if report.failed > len(report.problems):
        typer.echo(f"and {report.failed - len(report.problems)} more that failed", err=True)


def _summary(report: PruneReport) -> str:
    lines = [_counts(report)]
    lines += [f"  {safe(phase)}: {count}" for phase, count in sorted(report.phases.items())]
    if report.oldest is not None and report.newest is not None:
        lines.append(f"  last updated from {clock(report.oldest)} to {clock(report.newest)} UTC")
        lines.append(f"  documents of {size(report.document_bytes)}, {report.errors} errors, {report.logs} log lines")
    if report.archived:
        lines.append(f"  archived {report.archived}, {size(report.archived_bytes)}")
    return "\n".join(lines)


def _counts(report: PruneReport) -> str:
    kept = {"held": report.held, "touched": report.touched, "gone": report.gone, "failed": report.failed}
    texts = [f"{'to be deleted' if report.dry_run else 'deleted'}: {report.total}"]
    return ", ".join(texts + [f"{reason}: {count}" for reason, count in kept.items() if count])
