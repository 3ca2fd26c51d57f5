"""Programs for `python -c` that send a signal to a stage, and functions that read the output of a stage."""

import json
import random
import re

from semmae.core.digests import file_digest
from tests.project import Project

# Runs a stage, which sends itself a signal at a step. Arguments: <step> <signal> [<stage> <its arguments>]. The default
# stage is pretrain.
SIGNALED = """
import os, runpy, sys
from semmae.runs import run
step, number, record, calls = int(sys.argv[1]), int(sys.argv[2]), run.Run.record, 0
stage = sys.argv.pop(3) if len(sys.argv) > 3 else "pretrain"
sys.argv[1:] = sys.argv[3:]
def record_and_signal(self, **values):
    global calls
    calls += 1
    if calls == step:
        os.kill(os.getpid(), number)
    record(self, **values)
run.Run.record = record_and_signal
runpy.run_module(f"stages.{stage}", run_name="__main__", alter_sys=True)
"""

# Runs a stage, which sends itself a signal when a function has returned for the n-th time. Arguments:
# <module:function or module:Class.method> <n> <signal> <stage> <its arguments>.
SIGNALED_AFTER = """
import importlib, os, runpy, sys
(module, _, name), last, number, stage, calls = sys.argv[1].partition(":"), *map(int, sys.argv[2:4]), sys.argv[4], 0
owner = importlib.import_module(module)
*path, name = name.split(".")
for part in path:
    owner = getattr(owner, part)
function = getattr(owner, name)
def call_and_signal(*arguments, **keywords):
    global calls
    result, calls = function(*arguments, **keywords), calls + 1
    if calls == last:
        os.kill(os.getpid(), number)
    return result
setattr(owner, name, call_and_signal)
sys.argv[1:] = sys.argv[5:]
runpy.run_module(f"stages.{stage}", run_name="__main__", alter_sys=True)
"""


STEPS, PER_EPOCH = 24, 4  # in pretrain of the toy project


def random_step(name: str, first: int, last: int) -> int:
    """Return a random step from `first` to `last`, seeded by `name`."""
    return random.Random(name).randint(first, last)


def epochs(output: str) -> list[int]:
    """Return the numbers of the epochs in the output of a stage, in their order."""
    return [int(number) for number in re.findall(r"^epoch (\d+)/", output, re.MULTILINE)]


def weights(project: Project) -> list[str]:
    """Return the digests of the weights of pretrain."""
    return [file_digest(project.folder / f"data/pretrain/{name}.safetensors") for name in ("encoder", "decoder")]


def history(project: Project, stage: str = "pretrain") -> list[dict[str, float]]:
    """Return the history of a training, one row per epoch."""
    return json.loads((project.folder / f"data/{stage}/history.json").read_text())


def results(project: Project, stage: str) -> dict[str, bytes]:
    """Return the results of an evaluation on the toy dataset: the content of each file, by path."""
    files = [path for path in sorted((project.folder / "results" / stage).rglob("*")) if path.is_file()]
    contents = {str(path.relative_to(project.folder)): path.read_bytes() for path in files}
    return {path: content for path, content in contents.items() if "/toy" in path}


def delete_results(project: Project, stage: str) -> None:
    """Delete the results of an evaluation on the toy dataset."""
    for path in results(project, stage):
        (project.folder / path).unlink()
