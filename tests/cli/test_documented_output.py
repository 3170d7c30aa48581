"""Output of the commands that docs/looking-inside.md shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from vibeforge_sessions.cli.commands import app
from vibeforge_sessions.cli.groups import sessions

PROGRAM = ROOT / "examples" / "looking_inside.py"
NAMES = sorted(
    command.name or command.callback.__name__ for command in sessions.registered_commands if command.callback
)


def blocks(text: str) -> list[str]:
    return re.findall(r"^```text\n(\$ vibeforge-sessions sessions .*?)^```$", text, re.MULTILINE | re.DOTALL)


def without_sizes(text: str) -> str:
    """Remove the sizes on disk and their bars, which depend on SQLite's version."""
    before, _, sizes = text.partition(" on disk\n")
    return re.sub(r"[\d.]+ [kM]?B$", "", before) + re.sub(r" +[\d.]+ [kM]?B.*", "", sizes) if sizes else text


def test_documented_output_equals_printed_output() -> None:
    done = subprocess.run([sys.executable, PROGRAM], capture_output=True, text=True, check=True)
    parts = filter(str.strip, re.split(r"^(?=\$ )", done.stdout, flags=re.MULTILINE))
    printed = {part.splitlines()[0]: without_sizes(part.rstrip()) for part in parts}
    shown = blocks((ROOT / "docs" / "looking-inside.md").read_text("utf-8"))
    assert {block.split()[3] for block in shown} == {"list", "show", "errors", "stats"}
    for block in shown:
        assert printed[block.splitlines()[0]] == without_sizes(block.rstrip())


def test_example_keeps_its_file_on_request(tmp_path: Path) -> None:
    path = tmp_path / "kept.db"
    subprocess.run([sys.executable, PROGRAM, "--keep", path], capture_output=True, check=True)
    assert path.exists()


def test_guide_names_every_command() -> None:
    guide = (ROOT / "docs" / "looking-inside.md").read_text("utf-8")
    for name in ("list", "show", "errors", "logs", "stats", "watch", "delete"):
        assert name in NAMES
        assert f"`{name}" in guide


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_an_environment_variable_and_help_shows_no_value(name: str) -> None:
    from typer.testing import CliRunner  # noqa: PLC0415

    environment = {"VIBEFORGE_SESSIONS_DATABASE_URL": "postgresql://user:s3cret@host/db", "COLUMNS": "200"}
    done = CliRunner().invoke(app, ["sessions", name, "--help"], env=environment)
    assert done.exit_code == 0
    assert "s3cret" not in done.output
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", done.output)) - {"--help", "--json", "--no-errors"}
    assert done.output.count("env var: VIBEFORGE_SESSIONS_") >= len(options)
