"""A small process between the tests and a private server, which runs the server and outlives the tests.

``python guard.py OWNER_PID DIRECTORY`` reads requests from its standard input, one JSON object per line. It answers
each request with one line on its standard output:

    {"op": "start", "argv": [...], "env": {...}, "log": PATH, "user": UID|null, "group": GID|null, "stop_signal": N}
        -> {"pid": N} or {"error": TEXT}
    {"op": "poll", "pid": N}
        -> {"code": N|null}
    {"op": "stop"}
        -> the end, see below

After a stop request, or after the end of its owner, it stops every process that it has started and removes DIRECTORY.
Each server process is a child of this process from its start, and all its files are in that directory. A killed test
run therefore never leaves anything behind.

It is a separate script without site-packages, so that it starts in about 20 ms and does not load pytest.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_CHECK_INTERVAL = 0.2
_GRACE = 10.0


class Guard:
    """The child processes and their stop signals."""

    def __init__(self, owner: int, directory: Path) -> None:
        self._owner = owner
        self._directory = directory
        self._children: dict[int, tuple[subprocess.Popen[bytes], int]] = {}

    def serve(self) -> None:
        """Answer requests until a stop request, or until the owner has ended."""
        buffered = b""
        # The end of the pipe reveals the owner's death immediately, unless a process that it has forked still has the
        # other end open. The parent's id reveals it in every case.
        while os.getppid() == self._owner:
            readable, _, _ = select.select([0], [], [], _CHECK_INTERVAL)
            for process, _ in self._children.values():
                # Reaped promptly, because PostgreSQL treats a zombie's id in its lock file as a running server.
                process.poll()
            if not readable:
                continue
            received = os.read(0, 65536)
            if not received:
                return
            *lines, buffered = (buffered + received).split(b"\n")
            for line in lines:
                request = json.loads(line)
                if request["op"] == "stop":
                    return
                answer = self._poll(request["pid"]) if request["op"] == "poll" else self._start(request)
                os.write(1, json.dumps(answer).encode() + b"\n")

    def _start(self, request: dict[str, Any]) -> dict[str, Any]:
        # Groups are dropped together with the user; None changes neither.
        as_user: dict[str, Any] = {}
        if request["user"] is not None:
            as_user = {"user": request["user"], "group": request["group"], "extra_groups": []}
        try:
            with Path(request["log"]).open("ab") as log:
                process = subprocess.Popen(
                    request["argv"],
                    env=request["env"],
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    **as_user,
                )
        except (OSError, subprocess.SubprocessError) as error:
            return {"error": str(error)}
        self._children[process.pid] = (process, request["stop_signal"])
        return {"pid": process.pid}

    def _poll(self, pid: int) -> dict[str, Any]:
        return {"code": self._children[pid][0].poll()}

    def clean_up(self) -> None:
        """Stop the running processes and remove the directory."""
        running = [(process, how) for process, how in self._children.values() if process.poll() is None]
        for process, stop_signal in running:
            # A tool such as initdb has children in its process group; a server ends its own children.
            if stop_signal == signal.SIGKILL:
                os.killpg(process.pid, stop_signal)
            else:
                process.send_signal(stop_signal)
                process.send_signal(signal.SIGCONT)  # a frozen process does not receive other signals
        end = time.monotonic() + _GRACE
        for process, _ in running:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        # A process that is still ending may write a file into the folder during its removal.
        end = max(end, time.monotonic() + 1)
        while self._directory.exists() and time.monotonic() < end:
            shutil.rmtree(self._directory, ignore_errors=True)


def main() -> None:
    """Serve requests, and clean up in every case."""
    guard = Guard(int(sys.argv[1]), Path(sys.argv[2]))
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        guard.serve()
    finally:
        guard.clean_up()


if __name__ == "__main__":
    main()
