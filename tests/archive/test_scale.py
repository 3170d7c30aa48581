"""The script that measures runs, and memory does not grow with what is moved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.databases import fast_folder


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux")
def test_many_messages(tmp_path: Path) -> None:
    """A step needs 95 MB for itself, and would need 60 more if it held them all."""
    sizes = ["--sessions=20", "--errors=5000", "--message=12000", "--limit=140", "--steps", "export", "import", "copy"]
    command = [sys.executable, "-m", "tests.support.archive_scale", f"--folder={fast_folder() or tmp_path}", *sizes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("21 sessions") == 4
