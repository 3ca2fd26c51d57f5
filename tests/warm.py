"""Starts commands quickly, as forks of a server that has imported torch. The import takes most of a toy stage's time.

`commands()` returns a folder to put first in PATH. Its `python` and `semmae` send a command to the server, with the
standard files, the working folder and the environment of the caller. This applies to `semmae`, `python -c`, and
`python -m` with a module of stages, semmae or torch. Any other command runs as usual.

The server forks a process that runs the command. The caller forwards signals to this process and exits with its status.
If the caller is killed, the process is killed too.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import random
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

LIBRARIES = (
    "cv2", "einops", "jaxtyping", "pandas", "pyarrow.compute", "pyarrow.parquet", "pydantic",
    "rich.progress", "safetensors.torch", "scipy.optimize", "sklearn.cluster", "sklearn.linear_model", "timm",
    "torch._dynamo", "transformers.models.upernet.modeling_upernet",
)  # fmt: skip
FORWARDED = (signal.SIGINT, signal.SIGTERM)
SHIM = """#!{python} -IS
import os, sys
command = ["-m", "semmae", *sys.argv[1:]] if sys.argv[0].endswith("/semmae") else sys.argv[1:]
if command[:1] == ["-c"] or command[:1] == ["-m"] and command[1].partition(".")[0] in ("semmae", "stages", "torch"):
    sys.path.append({tests!r})
    import warm
    warm.ask({socket!r}, command)
os.execv({python!r}, [{python!r}, *command])
"""

# The standard input of a server stays open until this process ends. Then the server ends too.
_SERVERS: list[subprocess.Popen[bytes]] = []


@cache
def commands() -> Path:
    """Return the folder of the shims. The first test process starts the server, which ends with that process."""
    folder = Path(tempfile.gettempdir(), f"semmae-warm-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}")
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "bin").exists():
            server = subprocess.Popen(
                [sys.executable, __file__, folder / "socket"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            assert server.stdout is not None
            assert server.stdout.read() == b"ready"
            _SERVERS.append(server)
            (folder / "bin").mkdir()
            shim = SHIM.format(python=sys.executable, tests=str(Path(__file__).parent), socket=str(folder / "socket"))
            for name in ("python", "semmae"):
                (folder / "bin" / name).write_text(shim)
                (folder / "bin" / name).chmod(0o755)
            atexit.register(shutil.rmtree, folder)
    return folder / "bin"


def ask(path: str, command: list[str]) -> None:
    """Run `command` in a child of the server, and exit with its status.

    The command has the standard files, the working folder and the environment of this process. This function returns
    only if the server has ended.
    """
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.connect(path)
    except OSError:
        return
    for number in FORWARDED:
        signal.signal(number, lambda number, _: server.send(bytes([number])))
    request = json.dumps([command, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    status = int(server.recv(8) or b"1")
    if status < 0:
        if -status in FORWARDED:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def serve(path: str) -> None:
    """Import the libraries, then fork for every command until the test process ends. Returns only in a child."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # else the garbage collection of a child copies the memory pages of the libraries
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        os.write(1, b"ready")
        os.dup2(2, 1)
        while True:
            if 0 in select.select([0, listener], [], [])[0]:
                sys.exit()
            client, _ = listener.accept()
            if os.fork() == 0:
                return _serve_client(client)
            client.close()


def _serve_client(client: socket.socket) -> None:
    """Fork the process of the command. This process forwards signals to it and sends its status to the caller."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, _, _ = socket.recv_fds(client, 8, 3)
    body = client.makefile("rb").read(int.from_bytes(head, "big"))
    child = os.fork()
    if child == 0:
        client.close()
        return _run_command(*json.loads(body), files)
    for file in files:
        os.close(file)
    child_end = os.pidfd_open(child)
    while child_end not in select.select([child_end, client], [], [])[0]:
        number = client.recv(1)
        if not number:  # the caller was killed
            with contextlib.suppress(ProcessLookupError):  # the child may have no process group yet
                os.killpg(child, signal.SIGKILL)
            os.kill(child, signal.SIGKILL)
            break
        os.kill(child, number[0])
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        client.sendall(str(status).encode())
    os._exit(0)


def _run_command(command: list[str], folder: str, environment: dict[str, str], files: list[int]) -> None:
    """Set the session, files, folder, environment and arguments of this process to those of the command."""
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    random.seed()
    sys.path[0] = folder
    sys.argv = command


def _exit_quickly() -> None:
    """Exit without the destructors of torch, which take ten times as long as a fork."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if _status == -signal.SIGINT:  # as Python ends itself after an interrupt
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(_status)


if __name__ == "__main__":
    _status = 1  # the exit status after an exception
    atexit.register(_exit_quickly)  # registered before the handlers of the libraries, so called after them
    serve(sys.argv[1])
    kind = sys.argv.pop(0)
    try:
        if kind == "-c":
            program, sys.argv[0] = sys.argv[0], "-c"
            exec(program, {"__name__": "__main__"})
        else:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        _status = 0
    except SystemExit as end:
        _status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    except KeyboardInterrupt:
        _status = -signal.SIGINT
        raise
