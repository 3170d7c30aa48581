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
from rich.filesize import decimal

from vibeforge_sessions.cli.groups import Repository, sessions
from vibeforge_sessions.cli.options import Json, Yes, parse_age
from vibeforge_sessions.cli.output import UNREADABLE, ask_confirmation, clock, safe, show
from vibeforge_sessions.errors import SessionNotFoundError
from vibeforge_sessions.repository.query import MAX_PAGE, SessionFilter
from vibeforge_sessions.retention import BATCH_SIZE, PAUSE, OnBatch, PruneReport, prune

_OLDER_THAN: Final = "Only sessions without an update for this long: 12h, 30d or 8w."
SessionIds = Annotated[list[str], typer.Argument(metavar="ID…", envvar="VIBEFORGE_SESSIONS_SESSION_IDS")]


@sessions.command("prune")
def prune_sessions(
    repository: Repository,
    phase: Annotated[list[str], typer.Option(metavar="PHASE", help="Only sessions in this phase. Repeatable.")],
    older_than: Annotated[timedelta, typer.Option(parser=parse_age, metavar="AGE", help=_OLDER_THAN)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing. Print what would be deleted.")] = False,
    archive: Annotated[
        Path | None,
        typer.Option(
            help="Write each session to this file, and read it back, before its deletion. Compressed if it ends in .gz."
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=MAX_PAGE, help="Number of sessions that are found, and archived, at once.")
    ] = BATCH_SIZE,
    pause: Annotated[
        float,
        typer.Option(
            min=0, help="Pause after each deletion for other writers, as a multiple of the time that the deletion took."
        ),
    ] = PAUSE,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Show which old sessions of the given phases are not held, ask for confirmation, and delete them."""
    asked = SessionFilter(phases=phase)
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
def hold(repository: Repository, ids: SessionIds, as_json: Json = False) -> None:
    """Protect sessions from pruning until they are released."""
    _each(repository.hold_session, ids, "held", as_json=as_json)


@sessions.command()
def release(repository: Repository, ids: SessionIds, as_json: Json = False) -> None:
    """End the hold on sessions."""
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
        if shown is not None:  # the report of the last callback, which also contains the counts since then
            typer.echo(f"before the interruption: {_counts(shown)}", err=True)
        raise


def _show(report: PruneReport, *, as_json: bool) -> None:
    show(asdict(report) | {"total": report.total}, [_summary(report)], as_json=as_json)
    if as_json:
        return
    for problem in report.problems:
        typer.echo(f"{problem.session_id}: {safe(problem.reason)}", err=True)
    if report.failed > len(report.problems):
        typer.echo(f"and {report.failed - len(report.problems)} more that failed", err=True)


def _summary(report: PruneReport) -> str:
    lines = [_counts(report)]
    lines += [f"  {safe(phase)}: {count}" for phase, count in sorted(report.phases.items())]
    if report.oldest is not None and report.newest is not None:
        size = decimal(report.document_bytes)
        lines.append(f"  last updated from {clock(report.oldest)} to {clock(report.newest)} UTC")
        lines.append(f"  documents of {size}, {report.errors} errors, {report.logs} log lines")
    if report.archived:
        lines.append(f"  archived {report.archived}, {decimal(report.archived_bytes)}")
    return "\n".join(lines)


def _counts(report: PruneReport) -> str:
    kept = {"held": report.held, "touched": report.touched, "gone": report.gone, "failed": report.failed}
    texts = [f"{'to be deleted' if report.dry_run else 'deleted'}: {report.total}"]
    return ", ".join(texts + [f"{reason}: {count}" for reason, count in kept.items() if count])
