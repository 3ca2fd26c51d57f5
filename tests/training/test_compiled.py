"""Stages whose networks are compiled learn what they learn otherwise."""

import json
import re

import pytest

from tests.project import Project

# `python -m stages.<stage>`, but graphs are traced and run as they are: nothing waits for a C++ compiler.
TRACED = """
import runpy, sys, torch
compiled = torch.compile
modes = set()
torch.compile = lambda function, mode=None: modes.add(mode) or compiled(function, backend="aot_eager")
runpy.run_module(f"stages.{sys.argv.pop(1)}", run_name="__main__", alter_sys=True)
print("graphs:", torch._dynamo.utils.counters["stats"]["unique_graphs"], "modes:", modes)
"""


@pytest.mark.parametrize(
    ("stage", "how", "modes"),
    [("parts", True, "{None}"), ("pretrain", True, "{None}"), ("pretrain", "reduce-overhead", "{'reduce-overhead'}")],
)
def test_a_compiled_stage_learns_the_same(finished: Project, toy: Project, stage: str, how: bool | str, modes: str):
    toy.set(f"{stage}.compute.compile", how)
    said = toy.run("python", "-c", TRACED, stage)
    graphs = re.search(r"^graphs: (\d+) modes: (.*)", said, re.MULTILINE)
    assert graphs is not None
    assert int(graphs[1]) > 0
    assert graphs[2] == modes
    once, again = (
        json.loads((project.folder / f"data/{stage}/history.json").read_text()) for project in (finished, toy)
    )
    assert len(once) == len(again)
    for one, other in zip(once, again, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
