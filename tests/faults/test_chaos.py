"""The toy pipeline under random signals gives the same artifacts; `benchmarks/chaos.py` sends many more by hand."""

import subprocess
import sys
from pathlib import Path

from tests.imports import ROOT
from tests.project import Project


def test_ten_signals_lose_nothing(finished: Project, tmp_path: Path):
    command = (sys.executable, "-m", "benchmarks.chaos", "--kills", "10", "--folder", tmp_path)
    process = subprocess.run(
        [*command, "--undisturbed", finished.root], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    summary = process.stdout.splitlines()[-1]
    assert summary.startswith("kills 10, artifacts ")
    assert summary.endswith("differing 0, wedged 0")
