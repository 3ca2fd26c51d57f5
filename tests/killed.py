"""Stages that meet their fate at a given step: programs for `python -c`, and what a stage has said and written."""

import json
import random
import re

from semmae.core.digests import file_digest
from tests.project import Project

# `python -m stages.pretrain`, or another stage, but at the given step the process sends itself a signal.
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

# A stage that sends itself a signal as soon as a function, named as `module:function` or `module:Class.method`, has
# returned for the n-th time: <module:function> <n> <signal> <stage> <its arguments>.
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


def drawn(name: str, first: int, last: int) -> int:
    """A step from `first` to `last`, by chance, but the same one whenever the test of that name runs."""
    return random.Random(name).randint(first, last)


def epochs(said: str) -> list[int]:
    """The epochs that a stage reports, in their order."""
    return [int(number) for number in re.findall(r"^epoch (\d+)/", said, re.MULTILINE)]


def weights(project: Project) -> list[str]:
    """The digests of what pretrain has learned."""
    return [file_digest(project.folder / f"data/pretrain/{name}.safetensors") for name in ("encoder", "decoder")]


def history(project: Project, stage: str = "pretrain") -> list[dict[str, float]]:
    """The curves of a training, epoch by epoch."""
    return json.loads((project.folder / f"data/{stage}/history.json").read_text())


def answers(project: Project, stage: str) -> dict[str, bytes]:
    """What an evaluation of the toy data set has written, by its path."""
    files = [path for path in sorted((project.folder / "results" / stage).rglob("*")) if path.is_file()]
    told = {str(path.relative_to(project.folder)): path.read_bytes() for path in files}
    return {path: content for path, content in told.items() if "/toy" in path}


def forget(project: Project, stage: str) -> None:
    """Remove what an evaluation of the toy data set has written."""
    for path in answers(project, stage):
        (project.folder / path).unlink()
