"""Stages as real processes that need not load torch again: a server that has loaded it forks one for each command.

Most of a toy stage's time is the loading of torch and timm. `commands()` is a folder to put first in PATH; its `python`
hands `python -m stages.<name>`, `python -m semmae` and `python -c` with their files, folder and environment to the
server, forwards signals to the process that this becomes, kills it where it is killed itself, and ends as that ends.
Anything else is run as Python would.
"""

import atexit
import contextlib
import fcntl
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
    "cv2", "dvclive", "einops", "jaxtyping", "pandas", "pyarrow.compute", "pyarrow.parquet", "pydantic",
    "rich.progress", "safetensors.torch", "scipy.optimize", "sklearn.cluster", "sklearn.linear_model", "timm",
    "torch._dynamo", "transformers.models.upernet.modeling_upernet",
)  # fmt: skip
FORWARDED = (signal.SIGINT, signal.SIGTERM)
SHIM = """#!{python} -IS
import os, sys
if sys.argv[1:2] == ["-c"] or sys.argv[1:2] == ["-m"] and sys.argv[2].partition(".")[0] in ("semmae", "stages"):
    sys.path.append({tests!r})
    import warm
    warm.ask({socket!r}, sys.argv[1:])
os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""

_SERVERS: list[subprocess.Popen[bytes]] = []  # started here; their standard input stays open as long as this lives


@cache
def commands() -> Path:
    """The folder of the shim; the first of the test processes starts the server, which ends with it."""
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
            shim = folder / "bin/python"
            shim.write_text(
                SHIM.format(python=sys.executable, tests=str(Path(__file__).parent), socket=str(folder / "socket"))
            )
            shim.chmod(0o755)
            atexit.register(shutil.rmtree, folder)
    return folder / "bin"


def ask(path: str, command: list[str]) -> None:
    """Run `command` in a child of the server, with this process's files, folder and environment, and end as it ends;
    returns only where the server has ended, with the test process that had started it.
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
    """Load the libraries, say so, and fork for every command until the test process ends; returns in a child."""
    for name in LIBRARIES:
        importlib.import_module(name)
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
                return _attend(client)
            client.close()


def _attend(client: socket.socket) -> None:
    """Fork once more and become the command; this process hands over signals and the status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, _, _ = socket.recv_fds(client, 8, 3)
    body = client.makefile("rb").read(int.from_bytes(head, "big"))
    child = os.fork()
    if child == 0:
        client.close()
        return _become(*json.loads(body), files)
    for file in files:
        os.close(file)
    alive = os.pidfd_open(child)
    while alive not in select.select([alive, client], [], [])[0]:
        number = client.recv(1)
        if not number:  # who asked has been killed
            os.killpg(child, signal.SIGKILL)
            break
        os.kill(child, number[0])
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        client.sendall(str(status).encode())
    os._exit(0)


def _become(command: list[str], folder: str, environment: dict[str, str], files: list[int]) -> None:
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


if __name__ == "__main__":
    serve(sys.argv[1])
    kind = sys.argv.pop(0)
    if kind == "-c":
        program, sys.argv[0] = sys.argv[0], "-c"
        exec(program, {"__name__": "__main__"})
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
