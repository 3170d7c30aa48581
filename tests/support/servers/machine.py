"""Queries about the operating system: ports, folders and processes."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_MEMORY = "/dev/shm"
_ENOUGH_MEMORY = 2 * 2**30
_SHORT = 60


def free_port() -> int:
    """Return a free port of 127.0.0.1.

    The port is not in the ephemeral range (from 32768 on Linux). Otherwise a client could receive the port of a server
    that is down, and a client that retries often could even connect to itself.
    """
    for port in random.SystemRandom().sample(range(20000, 32000), 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port was found on 127.0.0.1")


def parent_of_server_directory(*, in_memory: bool, with_programs_for_another_user: bool) -> str:
    """Return the parent of a server's directory; in memory if requested and if there is enough memory.

    New databases are hundreds of small files: 5 ms in memory, 30 to 80 ms on a disk.
    """
    if in_memory and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ENOUGH_MEMORY:
        # Containers often forbid running programs from memory folders.
        may_run_programs = not os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC
        if may_run_programs or not with_programs_for_another_user:
            return _MEMORY
    # A short path, because a Unix socket's path is limited to about 100 bytes; accessible to another user.
    usual = tempfile.gettempdir()
    return "/tmp" if with_programs_for_another_user or len(usual) > _SHORT else usual


def wait_for(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Return as soon as the condition holds."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {timeout:.0f} s for {what}")
        time.sleep(0.005)


def is_running(pid: int) -> bool:
    """Return whether this process exists and is not a zombie."""
    return any(found == pid for found, _ in _processes())


def children_of(parent: int) -> list[int]:
    """Return the processes that this process has started directly."""
    return [pid for pid, found in _processes() if found == parent]


def _processes() -> list[tuple[int, int]]:
    """Return the ids of each living process and of its parent."""
    if not Path("/proc/self/stat").exists():
        listing = subprocess.run(["ps", "-axo", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
        rows = [line.split() for line in listing.splitlines()]
        return [(int(pid), int(parent)) for pid, parent, state in rows if not state.startswith("Z")]
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                # The command's name, in parentheses, may itself contain spaces and parentheses.
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue  # the process has just ended
            if state not in "ZX":
                found.append((int(folder.name), int(parent)))
    return found


def processes_of(directory: Path) -> list[str]:
    """Return the command lines of the processes that contain the path of a directory."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # the process has just ended
            found.append(command.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if str(directory) in line]
