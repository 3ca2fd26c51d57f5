"""The toy pipeline under random signals ends as an undisturbed one; `benchmarks/chaos.py` by hand sends many more."""

import subprocess
import sys
from pathlib import Path

from tests.imports import ROOT
from tests.project import Project


def test_ten_signals_lose_nothing(finished: Project, tmp_path: Path):
    command = (sys.executable, "-m", "benchmarks.chaos", "--kills", "10", "--folder", tmp_path)
    ended = subprocess.run(
        [*command, "--undisturbed", finished.root], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.splitlines()[-1]
    assert said.startswith("kills 10, artifacts ")
    assert said.endswith("differing 0, wedged 0")
