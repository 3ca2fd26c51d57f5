"""The functions for notebooks give the labels of the stage and the features of the evaluations, for every form."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import semmae
from semmae.core.compute import ComputeConfig
from semmae.data.dataset import Reader
from semmae.evaluation import features
from semmae.inference.part_mapper import PartLabels, PartMapper
from semmae.report.palettes import make_palette
from stages import part_maps as stage
from tests.project import ROOT

PAGE = (ROOT / "docs/reference/python.md").read_text()


def test_the_labels_of_a_dataset_are_those_of_the_stage(project: Path, mapper: PartMapper):
    reader = semmae.open_dataset(project / "data/shards/main")
    compute = ComputeConfig(device="cpu", precision="fp32", compile=False, workers=0)
    section = stage.PartMapsConfig(dataset="main", batch_size=8, attention=False, compute=compute)
    rows = {"all": list(range(len(reader)))}
    computed = stage.label_batches(section, reader, rows, mapper.teacher.encode, mapper.method, mapper.device)
    expected = np.concatenate([labels for _, labels, _ in computed])
    maps = semmae.map_parts(reader, mapper, batch_size=8)
    assert np.array_equal(maps.labels.reshape(len(reader), -1), expected)
    assert len(np.unique(expected)) == 4
    assert maps.names == ["part 0", "part 1", "part 2", "background"]
    np.testing.assert_allclose(maps.shares[:, 3], (expected == 3).mean(1))


def test_the_features_are_those_of_the_evaluations(project: Path):
    reader = semmae.open_dataset(project / "data/shards/main", "val")
    encoder = semmae.load_encoder(project / "data/pretrain", device="cpu")
    computed = semmae.encode(reader, encoder)
    for pool, values in (("class", computed.class_token), ("patch_mean", computed.patch_mean)):
        network = features.build_feature_encoder(encoder.network, pool=pool, device=torch.device("cpu"))
        expected = features.extract(network, reader, img_size=32, batch_size=8, workers=0)
        np.testing.assert_allclose(values, expected, atol=1e-6)


def test_every_form_of_an_image_gives_the_same_result(project: Path, mapper: PartMapper, pictures, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    tensors = [torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures]
    forms = {
        "paths": paths,
        "texts": list(map(str, paths)),
        "generator": (path for path in paths),
        "pillow": [Image.open(path) for path in paths],
        "tensors": tensors,
        "floats": [tensor / 255 for tensor in tensors],
    }
    expected = semmae.map_parts(pictures, mapper)
    assert expected.sizes == [(20, 31), (48, 48), (70, 33)]
    teacher = semmae.load_teacher(project / "data/teacher", device="cpu")
    vectors = semmae.encode(pictures, teacher).patch_mean
    for name, images in forms.items():
        kept = list(images)
        maps = semmae.map_parts(kept, mapper)
        assert np.array_equal(maps.labels, expected.labels), name
        assert maps.sizes == expected.sizes
        assert np.array_equal(semmae.encode(kept, teacher).patch_mean, vectors), name
    assert np.array_equal(semmae.map_parts(paths[1], mapper).labels, expected.labels[1:2])  # one image


def test_a_batch_is_several_images(mapper: PartMapper, pictures):
    batch = np.stack([pictures[1], pictures[1][::-1]])
    expected = semmae.map_parts(list(batch), mapper).labels
    assert np.array_equal(semmae.map_parts(batch, mapper).labels, expected)
    assert np.array_equal(semmae.map_parts(torch.from_numpy(batch).permute(0, 3, 1, 2), mapper).labels, expected)


def test_results_are_described_in_one_line(mapper: PartMapper, pictures):
    names = "part 0, part 1, part 2, background"
    assert repr(mapper) == f"PartMapper({names}; 8 x 8 patches of images of 32 pixels)"
    assert repr(semmae.map_parts(pictures, mapper)) == "PartLabels(3 images, 8 x 8 patches, 4 labels)"


def test_a_label_image_has_the_label_of_the_patch_under_each_pixel():
    labels = np.array([[[0, 1, 2], [3, 4, 5]]], np.uint8)
    maps = PartLabels(labels, [f"part {part}" for part in range(6)], None, [(4, 9)])
    assert np.array_equal(maps.label_image(0), np.kron(labels[0], np.ones((2, 3), np.uint8)))
    odd = PartLabels(labels, maps.names, None, [(5, 4)]).label_image(0)
    rows, columns = ((np.arange(5) + 0.5) * 2 / 5).astype(int), ((np.arange(4) + 0.5) * 3 / 4).astype(int)
    assert np.array_equal(odd, labels[0][rows][:, columns])


def test_a_picture_shows_every_image_beside_its_parts():
    white = np.full((10, 10, 3), 255, np.uint8)
    names = ["part 0", "part 1", "background"]
    maps = PartLabels(np.array([[[0]], [[1]], [[2]], [[0]]], np.uint8), names, 2, [(10, 10)] * 4)
    picture = np.array(semmae.draw_parts([white] * 4, maps))
    centers = [picture[32 + 12 + 144, 12 + column * 300 + 144] for column in range(6)]  # three pairs in the first row
    palette = make_palette("okabe_ito", 2)
    mixed = [(0.42 * 255 + 0.58 * color.astype(float)).round() for color in palette]
    assert np.array_equal(centers, [white[0, 0], mixed[0], white[0, 0], mixed[1], white[0, 0], white[0, 0]])
    with pytest.raises(ValueError, match="3 images and 4 part maps"):
        semmae.draw_parts([white] * 3, maps)


def test_other_objects_are_refused(project: Path, mapper: PartMapper, pictures):
    teacher = semmae.load_teacher(project / "data/teacher", device="cpu")
    with pytest.raises(TypeError, match=r"learner has the type Teacher; expected the result of semmae.load_part_learn"):
        semmae.map_parts(pictures, teacher)
    with pytest.raises(TypeError, match=r"encoder has the type PartMapper; expected the result of semmae.load_encoder"):
        semmae.encode(pictures, mapper)
    with pytest.raises(TypeError, match=r"maps has the type list; expected the result of semmae.map_parts"):
        semmae.draw_parts(pictures, pictures)
    with pytest.raises(ValueError, match=r"photos is not a dataset; expected .* pass the paths of its files"):
        semmae.open_dataset(project / "photos")


def test_the_import_is_quick_and_lists_the_functions():
    code = "import semmae, sys; assert not {'torch', 'numpy', 'timm'} & set(sys.modules); print(*dir(semmae))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(names) == {*semmae.__all__, "__version__"}
    assert len(semmae.__all__) <= 10
    assert set(re.findall(r"semmae\.(\w+)\(", PAGE)) == set(semmae.__all__)
    with pytest.raises(AttributeError, match="module 'semmae' has no attribute 'map_part'"):
        _ = semmae.map_part


def test_the_snippets_of_the_page_run(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(project)
    names: dict = {}
    for snippet in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        exec(snippet, names)
    assert isinstance(names["dataset"], Reader)
    assert names["maps"].sizes == [(40, 60), (50, 33), (64, 64)]
    assert Image.open("photo_parts.png").width > 288
    assert names["learner"].teacher is names["teacher"]
