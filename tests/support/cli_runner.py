"""Commands that run in the test process, because a new process takes a second."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

import typer.main
import typer.testing
from typer.testing import CliRunner

from vibeforge_sessions.cli.commands import app

# The runner builds all commands for each call, which takes longer than most of them.
vars(typer.testing)["_get_command"] = functools.cache(typer.main.get_command)

URL = "VIBEFORGE_SESSIONS_DATABASE_URL"


@dataclass(frozen=True)
class Done:
    """The result of a command."""

    code: int
    out: str
    errors: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def run(url: str | None, *arguments: str, given: str | bytes = "", width: int = 200, **environment: str | None) -> Done:
    """Run a command; no exception except `SystemExit` may leave it."""
    variables = {URL: url, "COLUMNS": str(width), **environment}
    done = CliRunner().invoke(app, arguments, input=given, env=variables)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Done(done.exit_code, done.stdout, done.stderr)
