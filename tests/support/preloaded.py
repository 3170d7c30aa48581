"""A Python interpreter that starts within milliseconds: a fork of a server that has imported the package.

``subprocess.Popen([*preloaded_python(), "-m", "vibeforge_sessions", …])`` starts a client, which sends its arguments,
environment, folder and standard streams to the server of this test process. The server forks, and the fork runs the
program. The client forwards signals, and ends with the program's exit code. If the client is killed, the program is
killed a moment later, and its output ends then.

Use `sys.executable` for programs that prevent imports, replace the package, or need options of the interpreter.
"""

from __future__ import annotations

import array
import atexit
import functools
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import types
import warnings
from pathlib import Path

_IMPORTED = ("alembic.config", "psycopg", "pymysql", "pytest", "vibeforge_sessions.cli.commands")
_READY = b"ready\n"
_MAX_REQUEST_BYTES = 1 << 20
_FORWARDED = (signal.SIGINT, signal.SIGTERM)


@functools.cache
def preloaded_python() -> tuple[str, ...]:
    """Return the beginning of a command, in place of `sys.executable`; the first call starts the server."""
    if not hasattr(os, "pidfd_open"):  # not Linux
        return (sys.executable,)
    address = os.path.join(tempfile.mkdtemp(prefix="preloaded-"), "socket")  # noqa: PTH118 (a plain string)
    server = subprocess.Popen(
        [sys.executable, "-m", __name__, address],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,  # its end ends the server, even if this process is killed
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == _READY
    atexit.register(_end, server, os.getpid())
    return sys.executable, "-I", "-S", __file__, address


def preloaded_pytest() -> tuple[str, ...]:
    """Return the beginning of a pytest command; pytest does not rewrite the assertions of imported modules."""
    return *preloaded_python(), "-m", "pytest", "-W", "ignore:Module already imported"


def _end(server: subprocess.Popen[bytes], owner: int) -> None:
    """End the server, unless this is a fork of its owner."""
    if os.getpid() == owner:
        server.communicate()  # closes its standard input


# --- client: imports as little as possible ---


def _request(address: str, arguments: list[str]) -> int:
    """Let the server run a program with this process's streams, and return its exit code."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.connect(address)

        def forward(number: int, _frame: object) -> None:
            channel.send(bytes([number]))

        for number in _FORWARDED:
            signal.signal(number, forward)
        request = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()  # noqa: PTH109
        streams = array.array("i", [0, 1, 2])
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAX_REQUEST_BYTES)
        channel.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        for stream in streams:
            os.close(stream)  # the program's readers must see its end
        return int(channel.recv(10) or b"255")


# --- server ---


def _serve(address: str) -> None:
    """Fork for each client until the standard input ends. The fork of a program returns from this function."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(100)
    os.write(1, _READY)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        if 0 in select.select([0, listener.fileno()], [], [])[0]:
            os.unlink(address)  # noqa: PTH108
            os.rmdir(os.path.dirname(address))  # noqa: PTH106, PTH120
            os._exit(0)
        channel, _ = listener.accept()
        if os.fork():
            channel.close()
            continue
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if _start(channel):
            return


def _start(channel: socket.socket) -> bool:
    """Fork the program and return True in it; wait for its end in the other process, and send its exit code."""
    request, streams, _, _ = socket.recv_fds(channel, _MAX_REQUEST_BYTES, 3)
    arguments, folder, environment = json.loads(request)
    program = os.fork()
    if program == 0:
        channel.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = arguments
        return True
    for stream in (0, 1, 2, *streams):
        os.close(stream)
    end = os.pidfd_open(program)
    while end not in select.select([end, channel.fileno()], [], [])[0]:
        os.kill(program, (channel.recv(1) or bytes([signal.SIGKILL]))[0])
    status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    try:
        channel.send(str(status if status >= 0 else 128 - status).encode())
    finally:
        os._exit(0)


def _run() -> None:
    """Run the program of `sys.argv` as the interpreter does."""
    import runpy  # noqa: PLC0415 (the client does not need it)

    sys.path[0] = os.getcwd()  # noqa: PTH109
    sys.path[1:1] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if sys.argv[:2] == ["-W", "error"]:
        warnings.simplefilter("error")
        del sys.argv[:2]
    kind, program, *arguments = sys.argv
    if kind == "-m":
        sys.argv = [program, *arguments]
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        assert kind == "-c"
        sys.argv = ["-c", *arguments]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(program, "<string>", "exec"), main.__dict__)  # noqa: S102


if __name__ == "__main__":
    _, socket_address, *given = sys.argv
    if given:
        sys.exit(_request(socket_address, given))

    import importlib

    for name in _IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    _serve(socket_address)
    _run()
