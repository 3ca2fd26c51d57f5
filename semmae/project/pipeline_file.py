"""The dvc.yaml of a project that uses an installed package, made from the repository's dvc.yaml.

In the repository, a stage depends on its source files. In a project these are outside, so the stage depends on a digest
of them (`stage_code`). A stage `code`, which always runs, writes the digests.
"""

import io
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from semmae.project.stage_code import OUT

REPOSITORY_FILE = Path(__file__).with_name("pipeline.yaml")  # a link; DVC would run a file with the name dvc.yaml
HEADER = """\
# The stages with their inputs and outputs. Their parameters are in params.yaml. `semmae run` runs them, as does
# `dvc repro`. Written by `semmae init`.
"""
CODE_PREFIXES = ("semmae/", "stages/")


def project_pipeline() -> str:
    """Return the text of a project's dvc.yaml."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 110, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    stages = yaml.load(REPOSITORY_FILE)["stages"]
    for name, entry in stages.items():
        stage = entry.get("do", entry)
        inputs = [dependency for dependency in stage["deps"] if not dependency.startswith(CODE_PREFIXES)]
        stage["deps"] = CommentedSeq(
            DoubleQuotedScalarString(path) if "$" in path else path for path in [*inputs, f"{OUT}/{name}.txt"]
        )
        stage["deps"].fa.set_flow_style()
    code = CommentedMap(
        desc="Write a digest of the code of every stage, so that a new version of semmae reruns what it changes.",
        cmd="python -m semmae.project.stage_code",
        always_changed=True,
        outs=[{str(OUT): {"cache": False}}],
    )
    stages.insert(0, "code", code)
    text = io.StringIO()
    yaml.dump(CommentedMap(stages=stages), text)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return HEADER + "\n".join(lines) + "\n"
