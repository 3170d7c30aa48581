"""The commands `sessions prune`, `hold` and `release`, and the scheduled jobs of docs/retention.md."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from sqlalchemy import text

from tests.support import ROOT
from tests.support.cli_runner import URL, Done, run
from tests.support.databases import Storage
from tests.support.documentation import blocks
from tests.support.preloaded import preloaded_python
from tests.support.repositories import text_of
from tests.support.retention import DAY, ids_of, imported, put, put_many
from vibeforge_sessions import SessionPhase, SQLAlchemySessionRepository, open_repository
from vibeforge_sessions.sql import create_engine

RULE = ("--phase", "COMPLETE", "--phase", "FAILED", "--older-than", "30d")


@pytest.fixture
def repository(url: str) -> Iterator[SQLAlchemySessionRepository]:
    engine = create_engine(url)
    yield SQLAlchemySessionRepository(engine)
    engine.dispose()


Sessions = Callable[..., Done]


@pytest.fixture
def sessions(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Sessions:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments, given="": run(url, "sessions", *arguments, given=given)


def test_prune_reports_matches_and_asks_for_confirmation(
    sessions: Sessions, repository: SQLAlchemySessionRepository, tmp_path: Path
) -> None:
    ids = put_many(repository, 3)
    put(repository, "failed", phase="FAILED", age=33 * DAY)
    put(repository, "running", phase="EXECUTION")
    put(repository, "young", age=29 * DAY)
    assert sessions("hold", ids[0], "missing").code == 1
    assert sessions("hold", ids[0]).out == f"held {ids[0]}\n"
    dry = sessions("prune", *RULE, "--dry-run", "--json")
    assert (dry.code, dry.errors) == (0, "")
    assert (dry.json["phases"], dry.json["total"], dry.json["held"]) == ({"COMPLETE": 2, "FAILED": 1}, 3, 1)
    assert dry.json["oldest"] < dry.json["newest"] < dry.json["before"]
    for given in ("", "n\n"):
        declined = sessions("prune", *RULE, given=given)
        assert (declined.code, declined.out) == (1, "")
        assert "to be deleted: 3, held: 1" in declined.errors
    assert len(ids_of(repository)) == 6
    done = sessions("prune", *RULE, "--archive", "old.jsonl.gz", "--batch-size", "2", given="y\n")
    assert done.code == 0
    assert done.out.startswith("deleted: 3, held: 1\n  COMPLETE: 2\n  FAILED: 1\n")
    assert "archived 3, " in done.out
    assert ids_of(imported(tmp_path / "old.jsonl.gz")) == ["failed", *ids[1:]]
    assert ids_of(repository) == ["running", ids[0], "young"]
    assert sessions("release", ids[0], "--json").json == {"released": [ids[0]]}
    assert sessions("prune", *RULE, "--yes").out.startswith("deleted: 1\n")
    assert sessions("prune", *RULE).out == "deleted: 0\n"  # no question without a match


def test_prune_failures_have_exit_codes(
    sessions: Sessions, repository: SQLAlchemySessionRepository, url: str, tmp_path: Path
) -> None:
    ids = put_many(repository, 3)
    failed = sessions("prune", *RULE, "--yes", "--archive", "no folder/archive")
    assert (failed.code, failed.out) == (1, "")
    assert failed.errors.strip() == "error: a file cannot be read or written: No such file or directory"
    for wrong in (RULE[:4], RULE[4:], (*RULE[:5], "soon"), (*RULE, "--batch-size", "0"), (*RULE, "--pause", "-1")):
        assert sessions("prune", *wrong, "--yes").code == 2
    assert sessions("prune", *RULE[:5], "0d", "--yes").code == 1
    assert ids_of(repository) == ids
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(f"DELETE FROM vibeforge_session_documents WHERE session_id = '{ids[1]}'"))
    engine.dispose()
    damaged = sessions("prune", *RULE, "--yes")
    assert damaged.code == 8
    assert damaged.out.startswith("deleted: 2, failed: 1\n")
    assert damaged.errors.startswith(f"{ids[1]}: ")


def test_interrupted_prune_reports_its_progress(url: str, repository: SQLAlchemySessionRepository) -> None:
    ids = put_many(repository, 3)
    repository.hold_session(ids[0])  # a batch without a deletion is not followed by a pause
    command = [*preloaded_python(), "-m", "vibeforge_sessions", "sessions", "prune", *RULE, "--yes"]
    command += ["--batch-size", "1", "--pause", "100000"]
    with subprocess.Popen(
        command, env={**os.environ, URL: url}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while len(ids_of(repository)) == 3:
            assert process.poll() is None
        time.sleep(1)  # until the process has registered the deletion and has begun its long pause
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate()
    assert process.returncode != 0
    assert (out, "Traceback" in errors) == ("", False)
    assert "before the interruption: deleted: 1, held: 1\n" in errors
    assert len(ids_of(repository)) == 2


# --- commands on SQLite ---


def test_database_without_tables_is_rejected_with_upgrade_command(tmp_path: Path) -> None:
    for command in (("prune", *RULE, "--yes"), ("hold", "s"), ("release", "s")):
        done = run(f"sqlite:///{tmp_path}/new.db", "sessions", *command)
        assert (done.code, done.out) == (3, "")
        assert "vibeforge-sessions db upgrade" in done.errors


@pytest.mark.parametrize("command", ["prune", "hold", "release"])
def test_every_option_is_an_environment_variable(command: str) -> None:
    shown = run("postgresql://user:s3cret@host/db", "sessions", command, "--help")
    assert shown.code == 0
    assert "s3cret" not in shown.out
    options = set(re.findall(r"--[a-z-]+", shown.out)) - {"--help"}
    assert shown.out.count("env var: VIBEFORGE_SESSIONS_") >= len(options)


# --- documentation ---


def commands() -> dict[str, list[str]]:
    """Return the command lines of the guide's cron and Kubernetes jobs."""
    [cron] = blocks("retention.md", "cron")
    fields = cron.split(None, 5)
    assert fields[:5] == ["15", "3", "*", "*", "*"]
    [job] = [yaml.safe_load(block) for block in blocks("retention.md", "yaml")]
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    assert job["spec"]["schedule"].split() == fields[:5]
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert [mount["name"] for mount in container["volumeMounts"]] == [volume["name"] for volume in pod["volumes"]]
    assert [each["name"] for each in container["env"]] == [URL]
    return {
        "cron": shlex.split(fields[5].rpartition("; ")[2]),
        "kubernetes": [*container["command"], *container["args"]],
    }


@pytest.mark.parametrize("name", ["cron", "kubernetes"])
def test_documented_job_prunes_sessions(name: str, sqlite: Storage, tmp_path: Path) -> None:
    program, *arguments = commands()[name]
    assert program == "vibeforge-sessions"
    archive = next(part for part in arguments if part.endswith(".jsonl.gz")).removeprefix("--archive=")
    here = [part.replace(archive, str(tmp_path / "sessions.jsonl.gz")) for part in arguments]
    url = text_of(sqlite.new_engine().url)
    with open_repository(url) as repository:
        put(repository, "old")
        put(repository, "young", age=DAY)
        done = run(url, *here)
        assert (done.code, done.errors) == (0, "")
        assert ids_of(repository) == ["young"]
    assert ids_of(imported(tmp_path / "sessions.jsonl.gz")) == ["old"]


def test_documented_policies_name_each_phase() -> None:
    page = (ROOT / "docs" / "retention.md").read_text("utf-8")
    [table] = re.findall(r"^\| phases \|.*?\n\n", page, re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`([A-Z_]+)`", table))
    assert named == {phase.value for phase in SessionPhase}
