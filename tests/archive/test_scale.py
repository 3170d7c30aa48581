"""Memory of exports, imports and copies of long histories."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.databases import fast_folder


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory is read from /proc")
def test_memory_does_not_grow_with_history(tmp_path: Path) -> None:
    """Transfer 60 MB of errors in steps that are limited to 140 MB; a step without data needs 95 MB."""
    sizes = ["--sessions=20", "--errors=5000", "--message=12000", "--limit=140", "--steps", "export", "import", "copy"]
    command = [sys.executable, "-m", "tests.support.archive_scale", f"--folder={fast_folder() or tmp_path}", *sizes]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("21 sessions") == 4
