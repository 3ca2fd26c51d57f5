"""Programs that kill a stage at a given step, for `python -c`, and readers of a stage's output and files."""

import json
import random
import re

from semmae.core.digests import file_digest
from tests.project import Project

# Run a stage that sends itself a signal at a step: <step> <signal> [<stage> <its arguments>]; default: pretrain.
SIGNALED = """
import os, runpy, sys
from semmae.runs import run
step, number, record, seen = int(sys.argv[1]), int(sys.argv[2]), run.Run.record, 0
stage = sys.argv.pop(3) if len(sys.argv) > 3 else "pretrain"
sys.argv[1:] = sys.argv[3:]
def counted(self, **values):
    global seen
    seen += 1
    if seen == step:
        os.kill(os.getpid(), number)
    record(self, **values)
run.Run.record = counted
runpy.run_module(f"stages.{stage}", run_name="__main__", alter_sys=True)
"""

# Run a stage that sends itself a signal when a function has returned for the n-th time:
# <module:function or module:Class.method> <n> <signal> <stage> <its arguments>.
SIGNALED_AFTER = """
import importlib, os, runpy, sys
(module, _, name), last, number, stage, seen = sys.argv[1].partition(":"), *map(int, sys.argv[2:4]), sys.argv[4], 0
owner = importlib.import_module(module)
*path, name = name.split(".")
for part in path:
    owner = getattr(owner, part)
function = getattr(owner, name)
def counted(*arguments, **keywords):
    global seen
    returned, seen = function(*arguments, **keywords), seen + 1
    if seen == last:
        os.kill(os.getpid(), number)
    return returned
setattr(owner, name, counted)
sys.argv[1:] = sys.argv[5:]
runpy.run_module(f"stages.{stage}", run_name="__main__", alter_sys=True)
"""


STEPS, PER_EPOCH = 24, 4  # of pretrain


def random_step(name: str, first: int, last: int) -> int:
    """Draw a step from `first` to `last`, the same for the same name."""
    return random.Random(name).randint(first, last)


def epochs(output: str) -> list[int]:
    """Return the epochs that a stage has printed, in their order."""
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
