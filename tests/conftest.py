"""Setup and fixtures of all tests: checks of tensor shapes, a temporary state root, one thread, toy projects."""

import fcntl
import inspect
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from beartype import beartype
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from tests.project import Project

os.environ["SEMMAE_STATE"] = tempfile.mkdtemp(prefix="semmae-state-")  # the processes that tests start inherit it
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors are small, and several test processes run in parallel


LONGEST = ("test_docs.py", "test_flow.py", "test_chaos.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest test files first, so that the test processes end at about the same time."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def check_shapes(function: Callable) -> Callable:
    """Return a function with shape annotations with a check of its arguments, and any other function unchanged."""
    has_shapes = "jaxtyping" in str(inspect.get_annotations(function))
    return beartype(function) if has_shapes else function


install_import_hook("semmae", f"{__name__}.check_shapes")  # must precede the first import of semmae


@pytest.fixture(autouse=True)
def state_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test its own state root."""
    root = tmp_path / "state"
    monkeypatch.setenv("SEMMAE_STATE", str(root))
    return root


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of drawn creatures of 32 pixels: 40 train images in 5 shards, 16 val images in 2."""
    from semmae.sharding import shard_writer
    from semmae.sharding.sources.sources import Creatures

    out = tmp_path_factory.mktemp("shards") / "toy"
    source = Creatures(kind="creatures", train=40, val=16, size=32, seed=0)
    shard_writer.write(out, {"toy": source}, seed=0, short_side=None, samples_per_shard=8, max_rejects=0.0, workers=0)
    return out


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> "Project":
    """The toy project after `dvc repro`, shared by all test processes. Tests must not change it."""
    from tests import project

    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent
    with open(shared / "finished.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not (shared / "finished/output").exists():
            shutil.rmtree(shared / "finished", ignore_errors=True)
            output = project.create(shared / "finished").dvc("repro")
            (shared / "finished/output").write_text(output)
    return project.Project(shared / "finished")


@pytest.fixture
def toy(finished: "Project", tmp_path: Path) -> "Project":
    """A copy of the finished toy project that a test may change."""
    return finished.copy(tmp_path / "toy")


@pytest.fixture
def inside(toy: "Project", monkeypatch: pytest.MonkeyPatch) -> "Project":
    """A copy of the finished toy project, whose folder and state root this process uses."""
    monkeypatch.chdir(toy.folder)
    monkeypatch.setenv("SEMMAE_STATE", str(toy.root / "state"))
    return toy
