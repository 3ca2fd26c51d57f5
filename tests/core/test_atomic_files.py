"""Written files have the permissions that the umask of the user allows, whatever library wrote them."""

import os
import stat
from pathlib import Path

import pytest
import torch

from semmae.core.atomic_files import atomic_write, write_json
from semmae.core.model_files import save_model


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(root: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*") if path.is_file()}


def test_files_and_folders_of_files_follow_the_umask(umask, tmp_path):
    save_model(tmp_path, "model", {"weight": torch.ones(2)}, {})  # safetensors writes with mode 0600
    write_json(tmp_path / "scores.json", {})
    with atomic_write(tmp_path / "export") as folder:
        folder.mkdir()
        os.close(os.open(folder / "weights", os.O_CREAT, 0o600))
    assert modes(tmp_path) == {0o666 & ~umask}
    assert os.umask(umask) == umask  # reading the umask has not changed it
