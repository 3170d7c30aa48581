"""The contract suite on the example implementation, and its detection of broken variants."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from examples.file_repository import FileSessionRepository
from tests.support import ROOT
from tests.support.databases import fast_folder
from tests.support.preloaded import preloaded_pytest, preloaded_python
from vibeforge_sessions import CorruptSessionError, Session, SessionRepository, StorageError
from vibeforge_sessions.testing import NewRepository, SessionRepositoryContract
from vibeforge_sessions.testing.base import full_session


@pytest.mark.variant
class TestFileRepository(SessionRepositoryContract):
    @pytest.fixture
    def new_repository(self) -> Iterator[NewRepository]:
        with TemporaryDirectory(prefix="vfs-files-", dir=fast_folder()) as folder:
            numbers = count()

            def new(*, session_type: type[Session] = Session) -> SessionRepository:
                return FileSessionRepository(Path(folder) / str(next(numbers)), session_type=session_type)

            yield new


APPEND = """
import sys
from pathlib import Path
from examples.file_repository import FileSessionRepository
repository = FileSessionRepository(Path(sys.argv[1]))
for number in range(40):
    repository.append_log("s", f"{sys.argv[2]} {number}")
"""


def test_concurrent_processes_append_without_loss(tmp_path: Path) -> None:
    repository = FileSessionRepository(tmp_path)
    repository.create_session(session_id="s")
    command = [*preloaded_python(), "-c", APPEND, str(tmp_path)]
    processes = [subprocess.Popen([*command, name], cwd=ROOT) for name in "abc"]
    assert [process.wait() for process in processes] == [0, 0, 0]
    lines = [line.split("] ")[1] for line in repository.list_logs("s", limit=1000)]
    assert sorted(lines) == sorted(f"{name} {number}" for name in "abc" for number in range(40))
    assert [line for line in lines if line.startswith("a")] == [f"a {number}" for number in range(40)]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"record": {}}', '{"record": null}'],
    ids=["empty", "truncated", "list", "empty_object", "empty_record", "null_record"],
)
def test_foreign_file_raises_corrupt_session(tmp_path: Path, text: str) -> None:
    repository = FileSessionRepository(tmp_path)
    repository.create_session(session_id="s")
    (file,) = tmp_path.glob("*.json")
    file.write_text(text)
    with pytest.raises(CorruptSessionError):
        repository.get_session("s")


@pytest.mark.parametrize("history", ["errors", "logs"])
def test_missing_history_entry_raises_corrupt_session(tmp_path: Path, history: str) -> None:
    repository = FileSessionRepository(tmp_path)
    repository.create_session(full_session("s"))
    (file,) = tmp_path.glob("*.json")
    data = json.loads(file.read_text())
    del data[history][0]
    file.write_text(json.dumps(data))
    for read in (repository.get_session, repository.list_errors, repository.list_logs):
        with pytest.raises(CorruptSessionError):
            read("s")


def test_missing_folder_raises_storage_error(tmp_path: Path) -> None:
    repository = FileSessionRepository(tmp_path / "folder")
    (tmp_path / "folder").rmdir()
    with pytest.raises(StorageError) as caught:
        repository.create_session()
    assert "folder" not in str(caught.value)


Outcomes = Counter[tuple[str, str, str]]
"""The number of tests by outcome, variant and name."""

DETECTED_BY = {
    "SharesSessionObjects": {
        "test_stored_data_is_independent_of_returned_objects",
        "test_stale_update_writes_nothing",
    },
    "IgnoresVersion": {
        "test_stale_update_writes_nothing",
        "test_update_of_other_incarnation_raises_stale",
        "test_modify_retries_when_stale",
    },
    "ReadsOutsideTheLock": {"test_concurrent_appends_and_updates_are_all_stored"},
    "AltersDocuments": {
        "test_json_values_are_exact",
        "test_update_of_key_order_only_is_stored",
        "test_update_of_type_only_is_stored",
    },
    "KeepsHistoryOfDeletedSession": {"test_delete_removes_session_and_histories"},
    "DecreasesStoredTime": {"test_stored_time_never_decreases"},
}
"""Tests of the contract that must fail for each broken variant."""


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """Run the contract on all broken variants."""
    # other tests run too, to show that the variant fails only some of them
    selection = [f"(Test{name} and ({' or '.join(sorted(tests))} or rejected))" for name, tests in DETECTED_BY.items()]
    with TemporaryDirectory(prefix="vfs-broken-", dir=fast_folder()) as folder:
        options = ["-q", "--tb=no", "-rA", "-p", "no:cacheprovider", "--basetemp", f"{folder}/run"]
        done = subprocess.run(
            [*preloaded_pytest(), *options, "-k", " or ".join(selection), "tests/support/broken_repositories.py"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    found = re.findall(r"^(PASSED|FAILED) \S+::Test(\w+)::(\w+)", done.stdout, re.MULTILINE)
    assert found, done.stdout + done.stderr
    return Counter(found)


@pytest.mark.parametrize("broken", DETECTED_BY)
def test_contract_detects_broken_variant(broken: str, outcomes: Outcomes) -> None:
    failed, passed = (
        {name: count for (outcome, variant, name), count in outcomes.items() if (outcome, variant) == (kind, broken)}
        for kind in ("FAILED", "PASSED")
    )
    assert failed.keys() >= DETECTED_BY[broken]
    assert sum(failed.values()) < sum(passed.values())
