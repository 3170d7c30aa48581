"""Worker processes of tests; a worker waits for a line before it begins."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.preloaded import preloaded_python


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Provide the process of a module, ``started("tests.support.worker", …)``; it is killed at the end of the block."""
    with subprocess.Popen(
        [*preloaded_python(), "-m", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    """Return the next line of the process's output; fail with its error output if there is none."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, process.stderr.read() if process.stderr else "no output"
    return line


def begin(process: subprocess.Popen[str]) -> None:
    """Let the process begin."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
