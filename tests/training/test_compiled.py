"""Check that stages train with compiled networks as they do without compilation."""

import json
import re

import pytest

from tests.project import Project

# `python -m stages.<stage>` with graphs that are traced but not compiled, because the C++ compiler is slow.
TRACED = """
import runpy, sys, torch
compiled = torch.compile
modes = set()
torch.compile = lambda function, mode=None: modes.add(mode) or compiled(function, backend="aot_eager")
runpy.run_module(f"stages.{sys.argv.pop(1)}", run_name="__main__", alter_sys=True)
print("graphs:", torch._dynamo.utils.counters["stats"]["unique_graphs"], "modes:", modes)
"""


@pytest.mark.parametrize(
    ("stage", "compile_mode", "modes"),
    [("teacher", True, "{None}"), ("pretrain", True, "{None}"), ("pretrain", "reduce-overhead", "{'reduce-overhead'}")],
)
def test_a_compiled_stage_has_the_losses_of_an_eager_one(
    finished: Project, toy: Project, stage: str, compile_mode: bool | str, modes: str
):
    toy.set(f"{stage}.compute.compile", compile_mode)
    output = toy.run("python", "-c", TRACED, stage)
    graphs = re.search(r"^graphs: (\d+) modes: (.*)", output, re.MULTILINE)
    assert graphs is not None
    assert int(graphs[1]) > 0
    assert graphs[2] == modes
    eager, compiled = (
        json.loads((project.folder / f"data/{stage}/history.json").read_text()) for project in (finished, toy)
    )
    assert len(eager) == len(compiled)
    for eager_row, compiled_row in zip(eager, compiled, strict=True):
        assert compiled_row["loss"] == pytest.approx(eager_row["loss"], rel=1e-4)
