"""The wheel: what is in it, and that it works where nothing else of this checkout is.

A checkout hides what a wheel lacks: the scripts lie beside the package, and every driver and tool is installed. So
these tests look into a built wheel, and then use it from an environment that holds the wheel and its declared
dependencies and nothing else.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

from tests.support import ROOT

SHIPPED = ("vibeforge_sessions", "migrations", "alembic.ini")
LICENSE = "licenses/LICENSE"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give a child's environment without what would let it find this checkout or a database of the caller's."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "PYTEST", "VIBEFORGE_SESSIONS_")) and name != "VIRTUAL_ENV"
    }
    return kept | dict(extra or {})


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run a command that must succeed, and give what it printed on stdout; its stderr is shown if it fails."""
    done = subprocess.run(
        command, cwd=cwd, env=environment(env), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{command} failed with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def known_to_git(*paths: str) -> set[str]:
    """Give the files below `paths` that a commit of everything would hold, relative to the root.

    In a fresh clone that is `git ls-files`. While somebody works, files not added yet count too, and files deleted but
    still in the index do not.
    """
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout, or git is missing: there is nothing to compare the wheel with")
    listed = run(
        # Containers often run as another user than the owner of the clone, which git refuses by default.
        *("git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"),
        *("--", *paths),
        cwd=ROOT,
    )
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


def in_wheel(names: Iterable[str]) -> set[str]:
    """Map paths of the checkout to those of the wheel: scripts and alembic.ini go into the package."""
    return {n if n.startswith("vibeforge_sessions/") else f"vibeforge_sessions/{n}" for n in names}


def build_wheel(source: Path, out: Path) -> Path:
    """Build the wheel of `source` with the hatchling that is installed here, so that no network is needed."""
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source, cwd=source)
    return the_wheel_in(out)


def the_wheel_in(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


def contents(wheel: Path) -> tuple[set[str], set[str]]:
    """Give the files of a wheel: those installed beside other packages, and those of its .dist-info."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    info = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    return names - info, {name.split("/", 1)[1] for name in info}


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel under test: built from this checkout, or one that `make wheel-test` has just built."""
    if built := os.environ.get("VIBEFORGE_SESSIONS_TEST_WHEEL_DIR"):
        return the_wheel_in(Path(built))
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the checkout, as a clone would be, that a test may change."""
    target = tmp_path / "checkout"
    for name in known_to_git():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)
    return target


# ------------------------------------------------------------------------------------------------- what is in the wheel


def test_wheel_holds_exactly_what_git_knows(wheel: Path) -> None:
    installed, info = contents(wheel)
    assert installed == in_wheel(known_to_git(*SHIPPED))
    assert info == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", LICENSE}


def test_wheel_holds_scripts_and_type_marker(wheel: Path) -> None:
    """What the comparison with git would not notice if it were missing on both sides."""
    installed, _ = contents(wheel)
    assert {
        "vibeforge_sessions/py.typed",
        "vibeforge_sessions/alembic.ini",
        "vibeforge_sessions/migrations/env.py",
        "vibeforge_sessions/migrations/script.py.mako",
    } <= installed
    assert any(n.startswith("vibeforge_sessions/migrations/versions/") and n.endswith(".py") for n in installed)


def test_pytest_finds_the_fixtures(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/entry_points.txt"))
        entries = archive.read(name).decode()
    assert "[pytest11]\nvibeforge_sessions = vibeforge_sessions.pytest_plugin\n" in entries


def test_ignored_files_do_not_ship(copy: Path, tmp_path: Path) -> None:
    strays = [
        "vibeforge_sessions/__pycache__/model.cpython-311.pyc",
        "vibeforge_sessions/left_behind.db",
        "vibeforge_sessions/sql/.env",
        "migrations/__pycache__/env.cpython-311.pyc",
        "migrations/versions/__pycache__/first.cpython-311.pyc",
        "migrations/versions/left_behind.sqlite3-wal",
        "dist/old.whl",
    ]
    for stray in strays:
        (copy / stray).parent.mkdir(parents=True, exist_ok=True)
        (copy / stray).write_text("stray")
    installed, _ = contents(build_wheel(copy, tmp_path / "out"))
    assert installed == in_wheel(known_to_git(*SHIPPED))


def test_wheel_of_the_source_distribution_is_the_same(wheel: Path, copy: Path, tmp_path: Path) -> None:
    """Distributors build from the sdist, so it must hold all that the wheel is made of."""
    out = tmp_path / "out"
    (copy / "site").mkdir()
    (copy / "site" / "index.html").write_text("built by make docs")
    # Without --wheel or --sdist, `build` makes the sdist and then the wheel from what it has unpacked.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy, cwd=copy)
    assert contents(the_wheel_in(out)) == contents(wheel)
    (source,) = out.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert "pyproject.toml" in names
    assert {name for name in names if re.match(r"site/|docs/reference|docs/site_hooks|mkdocs", name)} == set()


def test_metadata(wheel: Path) -> None:
    found = metadata(wheel)
    assert found["Name"] == "vibeforge-sessions"
    assert found["Requires-Python"] == ">=3.11"
    assert found["License-Expression"] == "MIT"
    assert set(found.get_all("Provides-Extra") or []) >= {
        "postgresql",
        "postgresql-asyncpg",
        "mariadb",
        "mariadb-asyncmy",
        "testing",
        "cli",
    }


def test_drivers_and_tools_are_extras(wheel: Path) -> None:
    """A service on SQLite must not get PostgreSQL's driver, nor pytest."""
    required = metadata(wheel).get_all("Requires-Dist") or []
    core = {line.split(">")[0].split("<")[0].strip() for line in required if "extra ==" not in line}
    assert core == {"sqlalchemy", "alembic", "pydantic", "pydantic-settings"}


# --------------------------------------------------------------------------------------- the wheel, installed elsewhere


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and an empty folder to use it from."""

    python: Path
    folder: Path

    def run(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> str:
        return run(self.python, *arguments, cwd=self.folder, env=env)

    def ask(self, code: str, env: Mapping[str, str] | None = None) -> object:
        """Run `code`, which prints one JSON value, and give that value."""
        return json.loads(self.run("-c", code, env=env))


@pytest.fixture(scope="session")
def bare_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel and its declared dependencies, and no extra."""
    folder = tmp_path_factory.mktemp("bare")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel, cwd=folder)
    run(*pip, "check", cwd=folder)
    return python


@pytest.fixture
def installed(bare_python: Path, tmp_path: Path) -> Installed:
    return Installed(bare_python, tmp_path)


@pytest.mark.wheel
def test_installed_package_is_not_the_checkout(installed: Installed) -> None:
    found = Path(str(installed.ask("import json, vibeforge_sessions as v; print(json.dumps(v.__file__))")))
    assert found.is_relative_to(installed.python.parents[1])
    assert installed.ask("import importlib.util as u; print(1 if u.find_spec('migrations') else 0)") == 0


@pytest.mark.wheel
@pytest.mark.parametrize("module", ["vibeforge_sessions", "vibeforge_sessions.model.session"])
def test_importing_the_model_does_not_import_sqlalchemy(installed: Installed, module: str) -> None:
    loaded = installed.ask(f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))")
    assert isinstance(loaded, list)
    assert module in loaded
    assert {name.split(".")[0] for name in loaded}.isdisjoint({"sqlalchemy", "alembic", "mako"})


@pytest.mark.wheel
def test_all_names_can_be_imported_from_a_base_install(installed: Installed) -> None:
    missing = installed.ask("""
import importlib.util, json
import vibeforge_sessions
names = list(vibeforge_sessions.__all__)
from vibeforge_sessions import *
assert importlib.util.find_spec("greenlet") is None
print(json.dumps([name for name in names if name not in globals()]))
""")
    assert missing == []


@pytest.mark.wheel
def test_migrations_run_from_python(installed: Installed) -> None:
    tables = installed.ask("""
import json
from sqlalchemy import inspect
from tests.support import ROOT
from vibeforge_sessions.sql import create_engine, migrate

engine = create_engine("sqlite:///sessions.db")
migrate.upgrade(engine)
print(json.dumps(inspect(engine).get_table_names()))
engine.dispose()
""")
    assert isinstance(tables, list)
    assert {"vibeforge_sessions", "vibeforge_sessions_alembic_version"} <= set(tables)


@pytest.mark.wheel
def test_open_repository_migrates_and_keeps_sessions(installed: Installed) -> None:
    created = installed.ask("""
import json
from vibeforge_sessions import SessionPhase, open_repository

repository = open_repository("sqlite:///x.db", migrate=True)
session = repository.create_session()
session.update_phase(SessionPhase.EXECUTION)
repository.update_session(session)
repository.append_error(session.session_id, "task", "it broke")
print(json.dumps(session.session_id))
""")
    assert (installed.folder / "x.db").is_file()
    found = installed.ask(
        """
import json, os
from vibeforge_sessions import SessionPhase, open_repository

session = open_repository().get_session(os.environ["ID"])
is_executing = session.phase is SessionPhase.EXECUTION
print(json.dumps([session.session_id, is_executing, session.error_history[0].error_message]))
""",
        env={"ID": str(created), "VIBEFORGE_SESSIONS_DATABASE_URL": "sqlite:///x.db"},
    )
    assert found == [created, True, "it broke"]


@pytest.mark.wheel
def test_shipped_ini_works_with_plain_alembic(installed: Installed) -> None:
    ini = installed.ask("""
import json, pathlib, vibeforge_sessions
print(json.dumps(str(pathlib.Path(vibeforge_sessions.__file__).parent / "alembic.ini")))
""")
    alembic = ("-m", "alembic", "-c", str(ini))
    env = {"VIBEFORGE_SESSIONS_DATABASE_URL": "sqlite:///sessions.db"}
    assert installed.run(*alembic, "current", env=env).strip() == ""
    installed.run(*alembic, "upgrade", "head", env=env)
    (head,) = installed.run(*alembic, "heads", env=env).split("\n")[:-1]
    assert head.endswith("(head)")
    assert installed.run(*alembic, "current", env=env).strip() == f"{head.split()[0]} (head)"
    installed.run(*alembic, "check", env=env)
    installed.run(*alembic, "downgrade", "base", env=env)
    assert installed.run(*alembic, "current", env=env).strip() == ""


# Prints the message and the whole traceback, since a cause that is chained shows what the message leaves out.
FAILING = """
import json, traceback
try:
    {code}
except {exception} as error:
    print(json.dumps([str(error), traceback.format_exc()]))
"""


@pytest.mark.wheel
@pytest.mark.parametrize("program", ["vibeforge-sessions", "-m vibeforge_sessions"])
def test_the_command_line_without_its_extra_names_it(installed: Installed, program: str) -> None:
    command = [installed.python.parent / program] if "-m" not in program else [installed.python, *program.split()]
    done = subprocess.run(
        [*command, "db", "status"], cwd=installed.folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: rich is not installed: pip install 'vibeforge-sessions[cli]'\n"


@pytest.mark.wheel
def test_testing_without_pytest_names_the_extra(installed: Installed) -> None:
    code = "from vibeforge_sessions.testing import SessionRepositoryContract"
    failed = installed.ask(FAILING.format(code=code, exception="ImportError"))
    assert isinstance(failed, list)
    assert "vibeforge-sessions[testing]" in failed[0]


@pytest.mark.wheel
@pytest.mark.parametrize(
    ("scheme", "extra"),
    [
        ("postgresql+psycopg", "postgresql"),
        pytest.param("postgresql", "postgresql", id="postgresql-default-driver"),
        ("mariadb+pymysql", "mariadb"),
    ],
)
def test_missing_driver_names_the_extra_and_not_the_password(installed: Installed, scheme: str, extra: str) -> None:
    # By way of the environment, for tracebacks quote the source of what fails.
    code = "import os, vibeforge_sessions as v; v.open_repository(os.environ['URL'])"
    failed = installed.ask(FAILING.format(code=code, exception="Exception"), env={"URL": f"{scheme}://u:s3cret@h/db"})
    assert isinstance(failed, list)
    message, trace = failed
    assert f"vibeforge-sessions[{extra}]" in message
    assert "s3cret" not in message + trace
