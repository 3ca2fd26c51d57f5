"""`python -m tests.imports` rewrites the code dependencies of every stage in dvc.yaml, after an import has changed."""

import io
import re
import textwrap
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from semmae.project.stage_code import ROOT, stage_files

WHOLE = {  # by stage: the folders that dvc.yaml lists as a whole if the stage imports one of their files
    "shards": set(),
    "report": {path.name for path in (ROOT / "semmae").iterdir() if path.is_dir()},
}
WHOLE_BY_DEFAULT = {"core", "data", "runs"}


def code_dependencies(stage: str) -> list[str]:
    """Return the code files and folders that dvc.yaml lists for a stage, including its page template.

    To keep dvc.yaml short, some folders are listed whole if the stage imports one of their files. This causes few
    needless runs. The stages that take hours import nearly all files of core, data and runs, and the report takes
    seconds only. For `shards` every file is listed.
    """
    files = stage_files(stage)
    listed_whole = WHOLE.get(stage, WHOLE_BY_DEFAULT)
    listed = {
        folder
        for folder in (ROOT / "semmae").rglob("*/")
        if (sources := {file for file in folder.rglob("*.py") if file.stat().st_size}) & files
        and (sources <= files or (folder.name in listed_whole and folder.parent.name == "semmae"))
    }
    whole = {folder for folder in listed if folder.parent not in listed}
    single = {
        file for file in files if file.stat().st_size and not any(file.is_relative_to(folder) for folder in whole)
    }
    return sorted(str(path.relative_to(ROOT)) for path in whole | single)


def rewrite(graph: Path) -> None:
    """Replace the code dependencies of each stage in `graph`. Its other dependencies stay and come first."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 110, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(graph)
    for name, entry in content["stages"].items():
        stage = entry.get("do", entry)
        others = [dep for dep in stage["deps"] if not dep.startswith(("semmae/", "stages/"))]
        listed = [*others, *code_dependencies(name)]
        stage["deps"] = CommentedSeq(DoubleQuotedScalarString(dep) if "$" in dep else dep for dep in listed)
        stage["deps"].fa.set_flow_style()
    text = io.StringIO()
    yaml.dump(content, text)
    wrapped = re.sub(r"^( *)deps: \[([^\]]*)\]", _wrap, text.getvalue(), flags=re.MULTILINE)
    graph.write_text(re.sub(r" +$", "", wrapped, flags=re.MULTILINE))


def _wrap(deps: re.Match[str]) -> str:
    """Break the list of dependencies into lines with the same indentation."""
    indent = deps[1] + "  "
    items = textwrap.fill(" ".join(deps[2].split()), 118, initial_indent=indent, subsequent_indent=indent,
                          break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return f"{deps[1]}deps: [\n{items},\n{deps[1]}]"


if __name__ == "__main__":
    rewrite(ROOT / "dvc.yaml")
