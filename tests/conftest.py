"""What all tests share: shapes are checked, state stays in a temporary folder, one thread, one toy dataset."""

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

os.environ["SEMMAE_STATE"] = tempfile.mkdtemp(prefix="semmae-state-")  # also for the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors, and several test processes at a time


LONG = ("test_docs.py", "test_flow.py", "test_chaos.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: nobody waits for them at the end."""
    items.sort(key=lambda item: item.path.name not in LONG)


def shapes(function: Callable) -> Callable:
    """The type checker of the import hook: functions that state shapes are checked at every call, others left alone."""
    states_shapes = "jaxtyping" in str(inspect.get_annotations(function))
    return beartype(function) if states_shapes else function


install_import_hook("semmae", f"{__name__}.shapes")  # must precede the first import of semmae


@pytest.fixture(autouse=True)
def state_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state root of its own for every test."""
    root = tmp_path / "state"
    monkeypatch.setenv("SEMMAE_STATE", str(root))
    return root


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 + 16 creatures of 32 pixels in 5 + 2 shards."""
    from semmae.sharding import shard_writer
    from semmae.sharding.sources.sources import Creatures

    out = tmp_path_factory.mktemp("shards") / "toy"
    source = Creatures(kind="creatures", train=40, val=16, size=32, seed=0)
    shard_writer.write(out, {"toy": source}, seed=0, short_side=None, samples_per_shard=8, max_rejects=0.0, workers=0)
    return out


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> "Project":
    """The toy project after `dvc repro`, which the first of the test processes runs for all. Look, do not touch."""
    from tests import project

    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent
    with open(shared / "finished.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not (shared / "finished/said").exists():
            shutil.rmtree(shared / "finished", ignore_errors=True)
            said = project.create(shared / "finished").dvc("repro")
            (shared / "finished/said").write_text(said)
    return project.Project(shared / "finished")


@pytest.fixture
def toy(finished: "Project", tmp_path: Path) -> "Project":
    """A copy of the finished toy project, to do anything with."""
    return finished.copy(tmp_path / "toy")


@pytest.fixture
def inside(toy: "Project", monkeypatch: pytest.MonkeyPatch) -> "Project":
    """A copy of the finished toy project, this process in its folder and with its state."""
    monkeypatch.chdir(toy.folder)
    monkeypatch.setenv("SEMMAE_STATE", str(toy.root / "state"))
    return toy
