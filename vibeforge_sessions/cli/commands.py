"""Commands of the group ``db``, and the application that contains all commands.

Each command calls a public function. On stdout, it prints only the result.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from typer.core import TyperGroup

from vibeforge_sessions.cli import archive, inspection, options, retention, statistics, watch  # noqa: F401 (imports register commands)
from vibeforge_sessions.cli.groups import Commands, Engine, sessions
from vibeforge_sessions.cli.output import EXIT_CODES, EXITS, UNREADABLE, ask_confirmation, safe, show
from vibeforge_sessions.errors import SchemaError, SessionRepositoryError
from vibeforge_sessions.model.session import Session
from vibeforge_sessions.settings import reject_misspelled_variables
from vibeforge_sessions.sql import migrate
from vibeforge_sessions.sql.admin import maintenance
from vibeforge_sessions.sql.engine import engine_on


class _Application(TyperGroup):
    """Rejects misspelled environment variables first, and translates every error to one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            if "--help" not in ctx.args:
                reject_misspelled_variables()
            return super().invoke(ctx)
        except SessionRepositoryError as error:
            typer.echo(f"error: {safe(str(error))}", err=True)
            state = error.state if isinstance(error, SchemaError) else None
            raise typer.Exit(1 if state is None else EXIT_CODES[state] or 1) from None
        except UnicodeError:  # Python represents undecodable bytes of an argument as surrogates
            typer.echo("error: an argument is not valid text in the system's encoding", err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=_Application,
    help="Long-running sessions in a database.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # the locals contain the URL
)
db = Commands(help=f"The database. {EXITS}", no_args_is_help=True)
app.add_typer(db, name="db")
app.add_typer(sessions, name="sessions")


def _session_class(name: str) -> type[Session]:
    """Import the session class of an application, named as ``package.module:Class``."""
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        found = None
    if not isinstance(found, type) or not issubclass(found, Session):
        raise typer.BadParameter(f"{name} is not an importable subclass of Session: name it as package.module:Class")
    return found


def _show_status(status: migrate.SchemaStatus, *, as_json: bool) -> None:
    """Print the status of a schema."""
    lines = [f"{status.state}: {status.reason}", *(f"pending: {revision}" for revision in status.pending)]
    if status.command is not None:
        lines.append(f"run: {status.command}")
    show(status, lines, as_json=as_json)


def _show_revisions(revisions: Sequence[migrate.Revision], *, as_json: bool) -> None:
    """Print the properties of revisions."""
    if as_json:
        show(revisions)
        return
    for each in revisions:
        locks = [f"{on}: {name} {how}" for on, tables in each.locks.items() for name, how in tables.items()]
        typer.echo(f"{each.revision}: {each.summary}")
        typer.echo(f"    locks: {', '.join(locks) or 'nothing'}")
        typer.echo(f"    rewrites: {', '.join(each.rewrites) or 'nothing'}")
        typer.echo(f"    databases where writers continue: {', '.join(each.online) or 'none'}")
        typer.echo(f"    a downgrade loses: {each.loses or 'nothing'}")


@db.command()
def status(engine: Engine, as_json: options.Json = False) -> None:
    """Show the status of the schema, and the command to run next. The exit code reports the status, too."""
    found = migrate.status(engine)
    _show_status(found, as_json=as_json)
    raise typer.Exit(EXIT_CODES[found.state])


@db.command()
def check(engine: Engine, as_json: options.Json = False) -> None:
    """Exit with 0 only if the database is at the head and equals the models: for CI and readiness probes."""
    _show_status(migrate.check_schema(engine, exact=True), as_json=as_json)


@db.command()
def wait(engine: Engine, wait_timeout: options.WaitTimeout = 60.0, as_json: options.Json = False) -> None:
    """Wait until another process has migrated the database to a schema that this version supports."""
    _show_status(migrate.wait(engine, wait_timeout), as_json=as_json)


@db.command()
def upgrade(
    url: options.Url,
    revision: options.Revision = "head",
    schema: options.Schema = None,
    sql: options.Sql = False,
    since: options.Since = None,
    lock_timeout: options.LockTimeout = None,
    statement_timeout: options.StatementTimeout = None,
    as_json: options.Json = False,
) -> None:
    """Upgrade the database to a revision, under the migration lock. Print each revision that was reached."""
    limits = {"lock_timeout": lock_timeout, "statement_timeout": statement_timeout}
    if sql:
        typer.echo(migrate.render(url, revision, since=since, downgrade=False, schema=schema, **limits), nl=False)
        return
    steps: list[str] = []
    report = steps.append if as_json else lambda step: typer.echo(f"upgraded to {step}")
    with engine_on(url, schema=schema) as engine:
        migrate.upgrade(engine, revision, report=report, **limits)
        if as_json:
            show({"upgraded": steps, "revision": migrate.current(engine)})


@db.command()
def downgrade(
    url: options.Url,
    revision: options.Revision,
    schema: options.Schema = None,
    sql: options.Sql = False,
    since: options.Since = None,
    yes: options.Yes = False,
    lock_timeout: options.LockTimeout = None,
    statement_timeout: options.StatementTimeout = None,
    as_json: options.Json = False,
) -> None:
    """Show what a downgrade to a revision loses, ask for confirmation, and downgrade."""
    limits = {"lock_timeout": lock_timeout, "statement_timeout": statement_timeout}
    if sql:
        typer.echo(migrate.render(url, revision, since=since, downgrade=True, schema=schema, **limits), nl=False)
        return
    steps: list[str] = []
    report = steps.append if as_json else lambda step: typer.echo(f"undone {step}")
    with engine_on(url, schema=schema) as engine:
        undone = migrate.plan_downgrade(engine, revision)
        for each in undone:
            typer.echo(f"the downgrade of {each.revision} loses: {each.loses or 'nothing'}", err=True)
        if undone and not yes and not ask_confirmation():
            raise typer.Exit(1)
        migrate.downgrade(engine, undone[-1].after or "base" if undone else revision, report=report, **limits)
        if as_json:
            show({"undone": steps, "revision": migrate.current(engine)})


@db.command()
def plan(engine: Engine, as_json: options.Json = False) -> None:
    """Show the pending revisions: locks, rewritten tables, whether writers are blocked, and what a downgrade loses."""
    _show_revisions(migrate.plan(engine), as_json=as_json)


@db.command()
def history(as_json: options.Json = False) -> None:
    """Show all revisions of this version."""
    _show_revisions(migrate.history(), as_json=as_json)


@db.command()
def stamp(engine: Engine, revision: options.Revision, lock_timeout: options.LockTimeout = None) -> None:
    """Record a revision without running a migration, for example after a restore without the version table."""
    migrate.stamp(engine, revision, lock_timeout=lock_timeout)


@db.command()
def path() -> None:
    """Print the path of the ini file for ``alembic -c``. The scripts are beside it."""
    typer.echo(migrate.script_folder() / "alembic.ini")


@db.command()
def grants(
    url: options.Url,
    role: Annotated[str | None, typer.Option(help="The role of the application; on MariaDB user or user@host.")] = None,
    migrator: Annotated[str | None, typer.Option(help="The role that runs the migrations.")] = None,
    schema: options.Schema = None,
) -> None:
    """Print SQL that grants the least privileges, without connecting.

    The privileges of the migrator are granted before the first upgrade.
    """
    if role is None and migrator is None:
        raise typer.BadParameter("name a role: --role, --migrator, or both")
    typer.echo(maintenance.grants(url, role, migrator=migrator, schema=schema), nl=False)


@db.command("verify-data")
def verify_data(
    engine: Engine,
    session_type: Annotated[
        type[Session] | None,
        typer.Option(
            parser=_session_class,
            metavar="MODULE:CLASS",
            help="The session class of the application, as package.module:Class.",
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of ids that are read at once.")] = 500,
    as_json: options.Json = False,
) -> None:
    """Read every stored session, and list unreadable sessions with the reason. Nothing is written."""
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("sessions", total=None)
        found = list(
            maintenance.verify_data(
                engine,
                session_type=session_type or Session,
                batch=batch,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        )
    show(found, (f"{each.session_id}: {each.reason}" for each in found), as_json=as_json)
    if found:
        raise typer.Exit(UNREADABLE)


@db.command()
def backup(
    url: options.Url, file: Annotated[Path, typer.Argument(envvar="VIBEFORGE_SESSIONS_BACKUP_FILE", help="A new file.")]
) -> None:
    """Copy a live SQLite database. For other databases, print the command of their own tool."""
    with engine_on(url) as engine:
        maintenance.backup(engine, file)
