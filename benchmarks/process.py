"""Processes of the contenders, and environments of the peers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
PATIENCE: Final = 120.0
"""Maximum seconds of a request. A store that takes longer is not measured."""
_FOREIGN: Final = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
"""Environment variables that would affect the environment of a peer."""


class WorkerError(Exception):
    """A contender has failed. The message contains no paths."""


class Worker:
    """Process of a contender."""

    def __init__(self, contender: str, place: str, python: str = sys.executable) -> None:
        self.contender, self.place, self.python = contender, place, python
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (open while the process runs)
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", contender, place],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name not in _FOREIGN},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        self._reader = ThreadPoolExecutor(1)  # a pipe cannot be read with a timeout

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Send a request, and return its answer.

        :raises WorkerError: the request failed, or took too long; then the process is ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            answered = self._reader.submit(self._process.stdout.readline)
            try:
                line = answered.result(PATIENCE)
            except TimeoutError:
                self._process.kill()
                raise WorkerError(f"takes more than {PATIENCE:.0f} s") from None
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise WorkerError(answer["error"].replace(self.place, "…"))
        return answer

    def is_running(self) -> bool:
        """Return whether the process runs."""
        return self._process.poll() is None

    def another(self) -> Worker:
        """Start another process of the same contender."""
        return Worker(self.contender, self.place, self.python)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()
        self._reader.shutdown()
        self._said.close()

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._said.seek(0)
        return (self._said.read().strip().splitlines() or ["the process has ended"])[-1][:500]


def environment(name: str, requirements: Sequence[str]) -> str:
    """Return the interpreter of a peer's environment; create the environment if it is missing.

    :raises WorkerError: the requirements cannot be installed.
    """
    folder = ROOT / ".venv-peers" / name.replace(" ", "-")
    python, stamp = folder / "bin" / "python", folder / ".installed"
    wanted = "\n".join(requirements)
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
        done = subprocess.run(install, check=False, capture_output=True, text=True)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise WorkerError(f"cannot be installed: {(errors or ['pip does not say why'])[-1]}")
        stamp.write_text(wanted)
    return str(python)
