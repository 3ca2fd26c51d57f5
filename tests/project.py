"""A toy-sized copy of the project in a temporary folder, for tests that run the real commands in real processes."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
from ruamel.yaml import YAML

from semmae.core import stage
from semmae.sharding.creatures import draw
from tests import warm

ROOT = Path(__file__).resolve().parents[1]
COPIED = (
    "semmae/**/*.py",
    "semmae/**/*.html",
    "stages/*.py",
    "stages/*.html",
    "results/*/.gitkeep",
    "dvc.yaml",
    ".dvc/config",
    ".dvc/.gitignore",
    ".dvcignore",
    ".gitignore",
)
TIMEOUT = 1800  # seconds; a command that takes longer is killed
NO_GIT_CONFIG = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}  # so Git knows no author
AUTHOR = {f"GIT_{role}_{field}": "toy" for role in ("AUTHOR", "COMMITTER") for field in ("NAME", "EMAIL")}


@dataclass(frozen=True)
class Project:
    """A toy project, with folders that its processes use instead of those of the user."""

    root: Path  # contains project/, state/, home/ and site/

    @property
    def folder(self) -> Path:
        return self.root / "project"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of commands: no configuration of the user, this Python first in PATH, one thread."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_", "PREFECT_"))}
        return kept | NO_GIT_CONFIG | {
            "PATH": os.pathsep.join([str(warm.commands()), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "HOME": str(self.root / "home"),
            "SEMMAE_STATE": str(self.root / "state"),
            "DVC_SITE_CACHE_DIR": str(self.root / "site"),
            "OMP_NUM_THREADS": "1",
            "DO_NOT_TRACK": "1",
            "COLUMNS": "200",
        }  # fmt: skip

    def start(self, *command: str, out: int = subprocess.PIPE, **environment: str) -> subprocess.Popen[str]:
        """Start a command in the folder of the project, in its own session, with standard error in standard output."""
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment | environment, text=True, start_new_session=True,
            stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *command: str, expect: int = 0, **environment: str) -> str:
        """Run a command, check its exit status and return its output."""
        process = self.start(*command, **environment)
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert process.returncode == expect, f"{' '.join(command)} exited with {process.returncode}:\n{output}"
        return output

    def dvc(self, *arguments: str, **keywords: Any) -> str:
        """Run a command of DVC."""
        return self.run(sys.executable, "-m", "dvc", *arguments, **keywords)

    def stage(self, name: str, *arguments: str, **keywords: Any) -> str:
        """Run a stage without DVC."""
        return self.run("python", "-m", f"stages.{name}", *arguments, **keywords)

    def set(self, key: str, value: Any) -> None:
        """Change the value of a key in params.yaml, for example `pretrain.seed`."""
        yaml, file = YAML(), self.folder / "params.yaml"
        params = section = yaml.load(file)
        *path, last = key.split(".")
        for name in path:
            section = section[name]
        section[last] = value
        yaml.dump(params, file)

    def picture(self, split: str, number: int, source: Path = Path("data/raw/pictures")) -> None:
        """Draw a creature and its mask into the raw images."""
        image, mask, label = draw.draw(0, f"{split}-{number:06d}", 32)
        name = Path(split) / draw.SPECIES[label] / f"{number:03d}.png"
        for folder, pixels in (("images", image[..., ::-1]), ("masks", mask)):
            path = self.folder / source / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels)

    def copy(self, to: Path) -> "Project":
        """Copy the project with its state, outputs and cache."""
        shutil.copytree(self.root, to, symlinks=True)
        return Project(to)


def create_empty(root: Path) -> Project:
    """Create an empty repository of Git and DVC."""
    project = Project(root)
    for folder in (project.folder, root / "home"):
        folder.mkdir()
    project.run("git", "init", "--quiet")
    project.dvc("init", "--quiet")
    return project


def create(root: Path) -> Project:
    """Create the project like a fresh clone, with toy parameters, 64 train and 32 val images, and commit it."""
    project = Project(root)
    for source in [source for pattern in COPIED for source in ROOT.glob(pattern)]:
        target = project.folder / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    shutil.copy(ROOT / "tests/toy/params.yaml", project.folder)
    (root / "home").mkdir()
    for split, count in (("train", 64), ("val", 32)):
        for number in range(count):
            project.picture(split, number)
    project.run("git", "init", "--quiet")
    project.run("git", "add", ".")
    project.run("git", "commit", "--quiet", "--message", "toy", **AUTHOR)
    return project


def call(name: str, *arguments: str) -> None:
    """Run a stage in this process, as its command does in a process of its own."""
    with mock.patch("sys.argv", [name, *arguments]):
        stage.main(importlib.import_module(f"stages.{name}").main)
