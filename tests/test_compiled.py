"""Stages whose networks are compiled learn what they learn otherwise."""

import json
import re

import pytest
from project import Project

# `python -m stages.<stage>`, but graphs are traced and run as they are: nothing waits for a C++ compiler.
TRACED = """
import runpy, sys, torch
compiled = torch.compile
torch.compile = lambda function, mode=None: compiled(function, backend="aot_eager")
runpy.run_module(f"stages.{sys.argv.pop(1)}", run_name="__main__", alter_sys=True)
print("graphs:", torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


@pytest.mark.parametrize("stage", ["parts", "pretrain"])
def test_a_compiled_stage_learns_the_same(finished: Project, toy: Project, stage: str):
    toy.set(f"{stage}.compute.compile", True)
    said = toy.run("python", "-c", TRACED, stage)
    assert int(re.search(r"^graphs: (\d+)", said, re.MULTILINE)[1]) > 0
    once, again = (
        json.loads((project.folder / f"data/{stage}/history.json").read_text()) for project in (finished, toy)
    )
    assert len(once) == len(again)
    for one, other in zip(once, again, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
