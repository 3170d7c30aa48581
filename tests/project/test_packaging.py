"""Contents of the wheel, and its use in an environment without the checkout.

In a checkout, missing files of the wheel go unnoticed: the scripts are next to the package, and every driver and tool
is installed. These tests therefore inspect a built wheel, and use it in an environment that contains only the wheel and
its declared dependencies.
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
    """Return the environment variables for a process that must find neither this checkout nor the caller's database."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "PYTEST", "VIBEFORGE_SESSIONS_")) and name != "VIRTUAL_ENV"
    }
    return inherited | dict(extra or {})


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Run a command, assert that it succeeds, and return its standard output."""
    done = subprocess.run(
        command, cwd=cwd, env=environment(env), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, f"{command} failed with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def files_in_git(*paths: str) -> set[str]:
    """Return the files below `paths` that Git would commit now, relative to the root.

    In a fresh clone these are the files of `git ls-files`. During development, files that are not yet added count too,
    and deleted files that are still in the index do not.
    """
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("without git and a git checkout, the wheel cannot be compared with the committed files")
    listed = run(
        # In containers the user is often not the owner of the clone, which git rejects by default.
        *("git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"),
        *("--", *paths),
        cwd=ROOT,
    )
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


def in_wheel(names: Iterable[str]) -> set[str]:
    """Map paths of the checkout to paths of the wheel, where migrations and alembic.ini are in the package."""
    return {n if n.startswith("vibeforge_sessions/") else f"vibeforge_sessions/{n}" for n in names}


def build_wheel(source: Path, out: Path) -> Path:
    """Build the wheel of `source` with the installed hatchling, because the tests must not need a network."""
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source, cwd=source)
    return the_wheel_in(out)


def the_wheel_in(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


def contents(wheel: Path) -> tuple[set[str], set[str]]:
    """Return the files of a wheel: those of the package, and those of its .dist-info."""
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
    """Return the wheel under test: built from this checkout, or already built by `make wheel-test`."""
    if built := os.environ.get("VIBEFORGE_SESSIONS_TEST_WHEEL_DIR"):
        return the_wheel_in(Path(built))
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the checkout that a test may change."""
    target = tmp_path / "checkout"
    for name in files_in_git():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)
    return target


# --- contents ---


def test_wheel_contains_exactly_files_in_git(wheel: Path) -> None:
    installed, info = contents(wheel)
    assert installed == in_wheel(files_in_git(*SHIPPED))
    assert info == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", LICENSE}


def test_wheel_contains_migrations_and_type_marker(wheel: Path) -> None:
    """Check the wheel for files whose absence from both git and the wheel the comparison would not detect."""
    installed, _ = contents(wheel)
    assert {
        "vibeforge_sessions/py.typed",
        "vibeforge_sessions/alembic.ini",
        "vibeforge_sessions/migrations/env.py",
        "vibeforge_sessions/migrations/script.py.mako",
    } <= installed
    assert any(n.startswith("vibeforge_sessions/migrations/versions/") and n.endswith(".py") for n in installed)


def test_wheel_declares_pytest_plugin(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/entry_points.txt"))
        entries = archive.read(name).decode()
    assert "[pytest11]\nvibeforge_sessions = vibeforge_sessions.pytest_plugin\n" in entries


def test_ignored_files_do_not_ship(copy: Path, tmp_path: Path) -> None:
    ignored = [
        "vibeforge_sessions/__pycache__/model.cpython-311.pyc",
        "vibeforge_sessions/local.db",
        "vibeforge_sessions/sql/.env",
        "migrations/__pycache__/env.cpython-311.pyc",
        "migrations/versions/__pycache__/first.cpython-311.pyc",
        "migrations/versions/local.sqlite3-wal",
        "dist/old.whl",
    ]
    for name in ignored:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("ignored")
    installed, _ = contents(build_wheel(copy, tmp_path / "out"))
    assert installed == in_wheel(files_in_git(*SHIPPED))


def test_wheel_of_the_source_distribution_is_the_same(wheel: Path, copy: Path, tmp_path: Path) -> None:
    """Build the wheel from the source distribution, as distributors do."""
    out = tmp_path / "out"
    (copy / "site").mkdir()
    (copy / "site" / "index.html").write_text("built by make docs")
    # Without --wheel or --sdist, `build` creates the sdist, unpacks it, and builds the wheel from it.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy, cwd=copy)
    assert contents(the_wheel_in(out)) == contents(wheel)
    (source,) = out.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert "pyproject.toml" in names
    assert {name for name in names if re.match(r"site/|docs/reference|docs/site_hooks|mkdocs", name)} == set()


def test_wheel_metadata(wheel: Path) -> None:
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
    """Check that an installation without extras needs neither drivers nor pytest."""
    required = metadata(wheel).get_all("Requires-Dist") or []
    core = {line.split(">")[0].split("<")[0].strip() for line in required if "extra ==" not in line}
    assert core == {"sqlalchemy", "alembic", "pydantic", "pydantic-settings"}


# --- installation in another environment ---


@dataclass(frozen=True)
class Installed:
    """Environment with the wheel, and an empty working folder."""

    python: Path
    folder: Path

    def run(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> str:
        return run(self.python, *arguments, cwd=self.folder, env=env)

    def evaluate(self, code: str, env: Mapping[str, str] | None = None) -> object:
        """Run `code`, which prints one JSON value, and return that value."""
        return json.loads(self.run("-c", code, env=env))


@pytest.fixture(scope="session")
def bare_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the interpreter of an environment with the wheel and its declared dependencies, without extras."""
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
    found = Path(str(installed.evaluate("import json, vibeforge_sessions as v; print(json.dumps(v.__file__))")))
    assert found.is_relative_to(installed.python.parents[1])
    assert installed.evaluate("import importlib.util as u; print(1 if u.find_spec('migrations') else 0)") == 0


@pytest.mark.wheel
@pytest.mark.parametrize("module", ["vibeforge_sessions", "vibeforge_sessions.model.session"])
def test_importing_the_model_does_not_import_sqlalchemy(installed: Installed, module: str) -> None:
    loaded = installed.evaluate(f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))")
    assert isinstance(loaded, list)
    assert module in loaded
    assert {name.split(".")[0] for name in loaded}.isdisjoint({"sqlalchemy", "alembic", "mako"})


@pytest.mark.wheel
def test_all_names_can_be_imported_from_a_base_install(installed: Installed) -> None:
    missing = installed.evaluate("""
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
    tables = installed.evaluate("""
import json
from sqlalchemy import inspect
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
    created = installed.evaluate("""
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
    found = installed.evaluate(
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
    ini = installed.evaluate("""
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


# Prints the message and the full traceback, because a chained exception could reveal what the message hides.
PRINT_ERROR = """
import json, traceback
try:
    {code}
except {exception} as error:
    print(json.dumps([str(error), traceback.format_exc()]))
"""


@pytest.mark.wheel
@pytest.mark.parametrize("program", ["vibeforge-sessions", "-m vibeforge_sessions"])
def test_command_line_without_its_extra_names_it(installed: Installed, program: str) -> None:
    command = [installed.python.parent / program] if "-m" not in program else [installed.python, *program.split()]
    done = subprocess.run(
        [*command, "db", "status"], cwd=installed.folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: rich is not installed: pip install 'vibeforge-sessions[cli]'\n"


@pytest.mark.wheel
def test_testing_without_pytest_names_missing_extra(installed: Installed) -> None:
    code = "from vibeforge_sessions.testing import SessionRepositoryContract"
    failed = installed.evaluate(PRINT_ERROR.format(code=code, exception="ImportError"))
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
def test_missing_driver_names_extra_and_hides_password(installed: Installed, scheme: str, extra: str) -> None:
    # The URL comes from the environment, because tracebacks quote the failing source line.
    code = "import os, vibeforge_sessions as v; v.open_repository(os.environ['URL'])"
    failed = installed.evaluate(
        PRINT_ERROR.format(code=code, exception="Exception"), env={"URL": f"{scheme}://u:s3cret@h/db"}
    )
    assert isinstance(failed, list)
    message, trace = failed
    assert f"vibeforge-sessions[{extra}]" in message
    assert "s3cret" not in message + trace
