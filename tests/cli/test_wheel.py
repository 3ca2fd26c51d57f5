"""The wheel works outside of a checkout: it makes a project, runs it, and reruns what a new version changes."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests import project

ROOT = Path(__file__).parents[2]
SOURCES = ("semmae", "stages", "recipes", "params.yaml", "dvc.yaml", "pyproject.toml", "README.md", "LICENSE")


def run(*command: str | Path, folder: Path, environment: dict[str, str] | None = None) -> str:
    """Run a command that must succeed, and return its output."""
    result = subprocess.run(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert result.returncode == 0, f"{' '.join(map(str, command))} exited with {result.returncode}:\n{result.stdout}"
    return result.stdout


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A virtual environment with the wheel. Other packages are those of this environment, without this checkout."""
    source = tmp_path / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ".", folder=source)
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, folder=tmp_path)
    wheel = next(tmp_path.glob("semmae-*.whl"))
    isolated = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    target = environment / "bin/python"
    run(*pip, "--python", target, "install", "--no-deps", wheel, folder=tmp_path, environment=isolated)
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment


@pytest.mark.heavy
def test_a_project_runs_from_the_wheel(installed: Path, tmp_path: Path):
    toy = project.Project(tmp_path)
    (tmp_path / "home").mkdir()
    # the interpreter of the environment, not that of the tests, and no configuration of the user
    environment = toy.environment | {"PATH": os.pathsep.join([str(installed / "bin"), os.defpath])}
    environment.pop("PYTHONPATH", None)
    semmae = installed / "bin/semmae"

    run(semmae, "init", toy.folder, "--demo", folder=tmp_path, environment=environment)
    imported = "import semmae, stages; print(semmae.__file__, stages.__file__)"
    assert run(installed / "bin/python", "-c", imported, folder=toy.folder, environment=environment).count(
        str(installed)
    ) == 2  # fmt: skip
    shutil.copy(ROOT / "tests/toy/params.yaml", toy.folder)
    for split, count in (("train", 64), ("val", 32)):
        for number in range(count):
            toy.picture(split, number)

    output = run(semmae, "run", folder=toy.folder, environment=environment)
    assert (toy.folder / "results/report/index.html").exists()
    assert str(toy.folder / "results/report/index.html") in output
    assert "all stages are up to date" in run(semmae, "run", folder=toy.folder, environment=environment)

    template = next(installed.glob("lib/python*/site-packages/stages/report.html"))
    template.write_text(template.read_text() + "<!-- a new version -->\n")
    output = run(semmae, "run", folder=toy.folder, environment=environment)
    assert "out of date: report\n" in output
    assert "a new version" in (toy.folder / "results/report/index.html").read_text()
