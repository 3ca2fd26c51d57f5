"""A project with a dataset, a teacher, a part learner and an encoder, made without its stages."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semmae.data.dataset import Reader
from semmae.data.loader import batches
from semmae.data.transforms import FullImage
from semmae.inference.part_mapper import PartMapper, load_part_mapper
from semmae.models import vit
from semmae.models.teacher import load_teacher, save_teacher
from semmae.parts.part_learner import PartLearner
from semmae.parts.part_methods import save_parts

SIZES = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
CONFIG = SIZES | {"mean": list(vit.MEAN), "std": list(vit.STD)}
LEARNER = {
    "method": "learned", "num_parts": 3, "background": True, "grid": (8, 8), "img_size": 32, "embed_dim": 16,
    "keys": "content", "smoothing_steps": 2, "position_weight": 2.0, "foreground": None, "initial_entropy": 0.5,
}  # fmt: skip


@pytest.fixture(scope="session")
def project(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ as after the pipeline, and three photographs of different sizes."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(toy_dataset, root / "data/shards/main")
    torch.manual_seed(0)
    save_teacher(root / "data/teacher", vit.build(CONFIG), CONFIG | {"class_token": True})
    vit.save(root / "data/pretrain", vit.build(CONFIG), CONFIG)
    teacher, reader = load_teacher(root / "data/teacher"), Reader(toy_dataset)
    loaded = batches(reader, np.arange(40), FullImage(32, 0, 0.0), batch_size=40, workers=0)
    learner = PartLearner(LEARNER | {"teacher": teacher.digest})
    learner.fit(torch.cat([teacher.encode(batch["image"]).patch for batch in loaded]), seed=0)
    save_parts(root / "data/parts", learner)
    (root / "photos").mkdir()
    for number, size in enumerate([(60, 40), (33, 50), (64, 64)]):
        Image.fromarray(reader.image(number)).resize(size).save(root / f"photos/{number}.jpg")
    return root


@pytest.fixture(scope="session")
def mapper(project: Path) -> PartMapper:
    return load_part_mapper(project / "data/parts", project / "data/teacher", "cpu")


@pytest.fixture
def pictures() -> list[np.ndarray]:
    """Images of different sizes."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((20, 31), (48, 48), (70, 33))]
