"""The worked example of an implementation passes the contract, and five ways to break it do not."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from examples.file_repository import FileSessionRepository
from tests.databases import fast_folder
from vibeforge_sessions import Session, SessionRepository
from vibeforge_sessions.testing import NewRepository, SessionRepositoryContract


class TestFileRepository(SessionRepositoryContract):
    @pytest.fixture
    def new_repository(self) -> Iterator[NewRepository]:
        with TemporaryDirectory(prefix="vfs-files-", dir=fast_folder()) as folder:
            numbers = count()

            def new(*, session_type: type[Session] = Session) -> SessionRepository:
                return FileSessionRepository(Path(folder) / str(next(numbers)), session_type=session_type)

            yield new


NOTICED_BY = {
    "HandsOutTheSameObject": {"test_what_comes_out_is_a_copy", "test_a_stale_update_is_refused_whole"},
    "LooksAtNoVersion": {
        "test_a_stale_update_is_refused_whole",
        "test_a_session_made_anew_under_the_same_id_is_another",
        "test_modify_tries_again_on_a_stale_version",
    },
    "ReadsOutsideTheLock": {"test_threads_append_and_update_one_session"},
    "KeepsDocumentsAlmost": {
        "test_json_values_come_back_exactly",
        "test_the_order_of_keys_is_part_of_the_value",
        "test_a_change_of_type_alone_is_a_change",
    },
    "LeavesHistoryBehind": {"test_a_deleted_session_is_gone_with_its_history"},
    "TurnsTheClockBack": {"test_the_stored_time_never_goes_back"},
}
"""What is broken, and tests of the contract that must fail of it."""


@pytest.mark.parametrize("broken", NOTICED_BY)
def test_the_contract_notices(broken: str) -> None:
    root = Path(__file__).parents[1]
    with TemporaryDirectory(prefix="vfs-broken-", dir=fast_folder()) as folder:
        options = ["-q", "--tb=no", "-p", "no:cacheprovider", "--basetemp", f"{folder}/run", "-k", f"Test{broken}"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, "tests/broken_repositories.py"],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
    failed = set(re.findall(rf"^FAILED \S+::Test{broken}::(\w+)", done.stdout, re.MULTILINE))
    assert failed >= NOTICED_BY[broken], done.stdout
    summary = re.search(r"(\d+) failed, (\d+) passed", done.stdout)
    assert summary is not None, done.stdout
    assert int(summary[1]) < int(summary[2]), "broken in one way, not in all"
