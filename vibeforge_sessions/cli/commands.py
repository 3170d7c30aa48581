"""The commands: each a call of a public function. Nothing but the result is printed on stdout."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from typer.core import TyperGroup

from vibeforge_sessions.cli import archive, inspection, retention, statistics, watch  # noqa: F401 (their commands)
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
    confirmed,
    explained,
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
    """A group that rejects misspelt environment variables before it reports a missing option."""

    def invoke(self, ctx: Any) -> Any:
        if "--help" not in ctx.args:
            with explained():
                reject_misspelled_variables()
        return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    help="Long-running sessions in a database.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they hold the URL
)
db = typer.Typer(help=f"The database. {EXITS}", no_args_is_help=True)
app.add_typer(db, name="db")
app.add_typer(sessions, name="sessions")


@db.command()
def status(url: Url, schema: Schema = None, as_json: Json = False) -> None:
    """Tell where the database stands, and what to run next; the exit code tells it too."""
    with explained(), engine_on(url, schema=schema) as engine:
        found = migrate.status(engine)
        show_status(found, as_json=as_json)
    raise typer.Exit(EXIT_CODES[found.state])


@db.command()
def check(url: Url, schema: Schema = None, as_json: Json = False) -> None:
    """Exit with 0 only if the database is at the head and equals the models: for CI and readiness probes."""
    with explained(), engine_on(url, schema=schema) as engine:
        show_status(migrate.check_schema(engine, exact=True), as_json=as_json)


@db.command()
def wait(url: Url, timeout: WaitTimeout = 60.0, schema: Schema = None, as_json: Json = False) -> None:
    """Wait until the database is one that this version works with: while somebody else migrates it."""
    with explained(), engine_on(url, schema=schema) as engine:
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
    """Bring the database up to a revision, under the migrations' lock; print each one that was reached."""
    with explained():
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
    """Take the database back to a revision; says what is lost, and asks."""
    with explained():
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
            if undone and not yes and not confirmed():
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
    """Show what an upgrade would run: what it locks, rewrites, whether others may write, what a downgrade loses."""
    with explained(), engine_on(url, schema=schema) as engine:
        show_revisions(migrate.plan(engine), as_json=as_json)


@db.command()
def history(as_json: Json = False) -> None:
    """Show all revisions of this version."""
    with explained():
        show_revisions(migrate.history(), as_json=as_json)


@db.command()
def stamp(
    url: Url,
    revision: Annotated[str, typer.Argument(envvar="VIBEFORGE_SESSIONS_REVISION")],
    schema: Schema = None,
    lock_timeout: LockTimeout = None,
) -> None:
    """Write down that the database is at a revision, and do nothing else: after a restore without that table."""
    with explained(), engine_on(url, schema=schema) as engine:
        migrate.stamp(engine, revision, lock_timeout=lock_timeout)


@db.command()
def path() -> None:
    """Print the ini for ``alembic -c``; the scripts are beside it."""
    with explained():
        typer.echo(migrate.script_folder() / "alembic.ini")


@db.command()
def grants(url: Url, role: Role = None, migrator: Migrator = None, schema: Schema = None) -> None:
    """Print the SQL of the least rights, without connecting; the migrator's come before the first upgrade."""
    if role is None and migrator is None:
        raise typer.BadParameter("say for whom: --role, --migrator, or both")
    with explained():
        typer.echo(maintenance.grants(url, role, migrator=migrator, schema=schema), nl=False)


@db.command("verify-data")
def verify_data(
    url: Url, session_type: SessionType = None, batch: Batch = 500, schema: Schema = None, as_json: Json = False
) -> None:
    """Read every stored session with this code, and list those that cannot be read, and why; writes nothing."""
    with explained(), engine_on(url, schema=schema) as engine, Progress(console=Console(stderr=True)) as bar:
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
    """Copy a live SQLite database; for other databases it says which tool to use."""
    with explained(), engine_on(url) as engine:
        maintenance.backup(engine, file)


def _class(name: str | None) -> type[Session]:
    if name is None:
        return Session
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError):
        raise typer.BadParameter(f"there is no {name} (package.module:Class)", param_hint="--session-type") from None
    if not isinstance(found, type) or not issubclass(found, Session):
        raise typer.BadParameter(f"{name} is no class of session", param_hint="--session-type")
    return found
