"""Commands ``db``, and the application that contains all commands.

Each command calls a public function. On stdout, it prints only the result.
"""

from __future__ import annotations

import importlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from typer.core import TyperGroup

from vibeforge_sessions.cli import archive, inspection, retention, statistics, watch  # noqa: F401 (they register commands)
from vibeforge_sessions.cli.options import (
    Batch,
    Json,
    LockTimeout,
    Migrator,
    Role,
    Schema,
    SessionType,
    Since,
    Sql,
    StatementTimeout,
    Url,
    WaitTimeout,
    Yes,
)
from vibeforge_sessions.cli.output import (
    EXIT_CODES,
    EXITS,
    UNREADABLE,
    ask_confirmation,
    report_errors,
    show,
    show_revisions,
    show_status,
)
from vibeforge_sessions.cli.sessions import sessions
from vibeforge_sessions.model.session import Session
from vibeforge_sessions.settings import reject_misspelled_variables
from vibeforge_sessions.sql import migrate
from vibeforge_sessions.sql.admin import maintenance
from vibeforge_sessions.sql.engine import engine_on


class _Commands(TyperGroup):
    """A group that rejects misspelled environment variables before it reports a missing option."""

    def invoke(self, ctx: Any) -> Any:
        if "--help" not in ctx.args:
            with report_errors():
                reject_misspelled_variables()
        return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    help="Long-running sessions in a database.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # the locals contain the URL
)
db = typer.Typer(help=f"The database. {EXITS}", no_args_is_help=True)
app.add_typer(db, name="db")
app.add_typer(sessions, name="sessions")


@db.command()
def status(url: Url, schema: Schema = None, as_json: Json = False) -> None:
    """Show the status of the schema, and the command to run next. The exit code reports the status, too."""
    with report_errors(), engine_on(url, schema=schema) as engine:
        found = migrate.status(engine)
        show_status(found, as_json=as_json)
    raise typer.Exit(EXIT_CODES[found.state])


@db.command()
def check(url: Url, schema: Schema = None, as_json: Json = False) -> None:
    """Exit with 0 only if the database is at the head and equals the models: for CI and readiness probes."""
    with report_errors(), engine_on(url, schema=schema) as engine:
        show_status(migrate.check_schema(engine, exact=True), as_json=as_json)


@db.command()
def wait(url: Url, timeout: WaitTimeout = 60.0, schema: Schema = None, as_json: Json = False) -> None:
    """Wait until another process has migrated the database to a schema that this version supports."""
    with report_errors(), engine_on(url, schema=schema) as engine:
        show_status(migrate.wait(engine, timeout), as_json=as_json)


@db.command()
def upgrade(
    url: Url,
    revision: Annotated[str, typer.Argument(envvar="VIBEFORGE_SESSIONS_REVISION")] = "head",
    schema: Schema = None,
    sql: Sql = False,
    since: Since = None,
    lock_timeout: LockTimeout = None,
    statement_timeout: StatementTimeout = None,
    as_json: Json = False,
) -> None:
    """Upgrade the database to a revision, under the migration lock. Print each revision that was reached."""
    with report_errors():
        if sql:
            text = migrate.render(
                url,
                revision,
                since=since,
                schema=schema,
                lock_timeout=lock_timeout,
                statement_timeout=statement_timeout,
            )
            typer.echo(text, nl=False)
            return
        steps: list[str] = []
        with engine_on(url, schema=schema) as engine:
            migrate.upgrade(
                engine,
                revision,
                lock_timeout=lock_timeout,
                statement_timeout=statement_timeout,
                report=steps.append if as_json else lambda step: typer.echo(f"upgraded to {step}"),
            )
            if as_json:
                show({"upgraded": steps, "revision": migrate.current(engine)})


@db.command()
def downgrade(
    url: Url,
    revision: Annotated[str, typer.Argument(envvar="VIBEFORGE_SESSIONS_REVISION", help="An id, base, or as in -1.")],
    schema: Schema = None,
    sql: Sql = False,
    since: Since = None,
    yes: Yes = False,
    lock_timeout: LockTimeout = None,
    statement_timeout: StatementTimeout = None,
    as_json: Json = False,
) -> None:
    """Show what a downgrade to a revision loses, ask for confirmation, and downgrade."""
    with report_errors():
        if sql:
            text = migrate.render(
                url,
                revision,
                since=since,
                downgrade=True,
                schema=schema,
                lock_timeout=lock_timeout,
                statement_timeout=statement_timeout,
            )
            typer.echo(text, nl=False)
            return
        with engine_on(url, schema=schema) as engine:
            undone = migrate.plan_downgrade(engine, revision)
            for each in undone:
                typer.echo(f"undoing {each.revision} loses: {each.loses or 'nothing'}", err=True)
            if undone and not yes and not ask_confirmation():
                raise typer.Exit(1)
            steps: list[str] = []
            migrate.downgrade(
                engine,
                undone[-1].after or "base" if undone else revision,
                lock_timeout=lock_timeout,
                statement_timeout=statement_timeout,
                report=steps.append if as_json else lambda step: typer.echo(f"undone {step}"),
            )
            if as_json:
                show({"undone": steps, "revision": migrate.current(engine)})


@db.command()
def plan(url: Url, schema: Schema = None, as_json: Json = False) -> None:
    """Show the pending revisions: locks, rewritten tables, whether others may write, and what a downgrade loses."""
    with report_errors(), engine_on(url, schema=schema) as engine:
        show_revisions(migrate.plan(engine), as_json=as_json)


@db.command()
def history(as_json: Json = False) -> None:
    """Show all revisions of this version."""
    with report_errors():
        show_revisions(migrate.history(), as_json=as_json)


@db.command()
def stamp(
    url: Url,
    revision: Annotated[str, typer.Argument(envvar="VIBEFORGE_SESSIONS_REVISION")],
    schema: Schema = None,
    lock_timeout: LockTimeout = None,
) -> None:
    """Record that the database is at a revision, without a migration: after a restore without the version table."""
    with report_errors(), engine_on(url, schema=schema) as engine:
        migrate.stamp(engine, revision, lock_timeout=lock_timeout)


@db.command()
def path() -> None:
    """Print the path of the ini file for ``alembic -c``. The scripts are beside it."""
    with report_errors():
        typer.echo(migrate.script_folder() / "alembic.ini")


@db.command()
def grants(url: Url, role: Role = None, migrator: Migrator = None, schema: Schema = None) -> None:
    """Print SQL that grants the least privileges, without connecting.

    The privileges of the migrator are granted before the first upgrade.
    """
    if role is None and migrator is None:
        raise typer.BadParameter("name a role: --role, --migrator, or both")
    with report_errors():
        typer.echo(maintenance.grants(url, role, migrator=migrator, schema=schema), nl=False)


@db.command("verify-data")
def verify_data(
    url: Url, session_type: SessionType = None, batch: Batch = 500, schema: Schema = None, as_json: Json = False
) -> None:
    """Read every stored session, and list unreadable sessions with the reason. Nothing is written."""
    with report_errors(), engine_on(url, schema=schema) as engine, Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("sessions", total=None)
        found = list(
            maintenance.verify_data(
                engine,
                session_type=_class(session_type),
                batch=batch,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        )
    if as_json:
        show([asdict(each) for each in found])
    for each in () if as_json else found:
        typer.echo(f"{each.session_id}: {each.reason}")
    if found:
        raise typer.Exit(UNREADABLE)


@db.command()
def backup(
    url: Url, file: Annotated[Path, typer.Argument(envvar="VIBEFORGE_SESSIONS_BACKUP_FILE", help="A new file.")]
) -> None:
    """Copy a live SQLite database. For other databases, print the command of their own tool."""
    with report_errors(), engine_on(url) as engine:
        maintenance.backup(engine, file)


def _class(name: str | None) -> type[Session]:
    if name is None:
        return Session
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError):
        raise typer.BadParameter(
            f"{name} cannot be imported: name a class as package.module:Class", param_hint="--session-type"
        ) from None
    if not isinstance(found, type) or not issubclass(found, Session):
        raise typer.BadParameter(f"{name} is not a subclass of Session", param_hint="--session-type")
    return found
