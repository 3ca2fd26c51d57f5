"""Figures: colors that everyone can distinguish, masks as training draws them, pixels as the model receives them."""

import numpy as np
import pytest
import torch
from PIL import Image

from semmae.data.dataset import Reader
from semmae.evaluation.scores import Scores
from semmae.models import mae, masking, vit
from semmae.parts.part_maps import PartMaps
from semmae.report import charts, figures, heat_maps, overlays, palettes, score_tables

MASKING = {"strategy": "semantic", "mask_ratio": 0.75, "curriculum": {"start": 0.0, "end": 1.0, "power": 2.0}}
NOTICEABLE = 0.02  # OKLab


@pytest.fixture
def reader(toy_dataset):
    return Reader(toy_dataset, "val")


@pytest.fixture
def maps(reader):
    """Four quadrants, parts 0 to 2 and the background 3."""
    quadrants = np.kron(np.arange(4, dtype=np.uint8).reshape(2, 2), np.ones((2, 2), np.uint8)).reshape(1, -1)
    metadata = {"grid": [4, 4], "num_parts": 3, "background": 3, "teacher": "", "parts": ""}
    labels = quadrants.repeat(len(reader), axis=0)
    return PartMaps(reader.keys, {"part_map": labels, "attention": labels + 1}, metadata, 0)


@pytest.fixture
def samples(reader, maps):
    return figures.load_samples(reader, maps, np.arange(3), img_size=32, patch_size=4)


@pytest.fixture
def model():
    torch.manual_seed(0)
    encoder = vit.build({"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2})
    return mae.MAE(encoder, embed_dim=16, depth=1, num_heads=2).eval()


@pytest.mark.parametrize("name", palettes.PALETTES)
@pytest.mark.parametrize("count", [3, 7, 20])
def test_colors_differ_for_all_types_of_vision(name, count):
    colors = palettes.make_palette(name, count).astype(float)
    distance = palettes.perceived_distance(colors, colors)
    assert colors.shape == (count, 3)
    assert distance[~np.eye(count, dtype=bool)].min() > 3 * NOTICEABLE


def test_perceived_colors_match_known_facts():
    black, white, red, green = (np.array([rgb]) for rgb in ((0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 148, 0)))
    assert palettes.perceived_distance(black, white)[0, 0] == pytest.approx(1, abs=1e-3)
    normal, protanope, deuteranope = np.linalg.norm(
        palettes.perceived_oklab(red) - palettes.perceived_oklab(green), axis=-1
    )[:, 0]
    assert normal > 2 * deuteranope  # to deuteranopes, red and green of equal lightness look similar
    assert normal > protanope


def test_an_unknown_palette_is_refused():
    with pytest.raises(ValueError, match=r"unknown colors: 'beige'; expected one of okabe_ito"):
        palettes.make_palette("beige", 3)


def test_overlay_colors_parts_and_leaves_the_background_its_hue():
    picture = np.full((24, 24, 3), (200, 80, 40), np.uint8)
    labels = np.zeros((24, 24), np.uint8)
    labels[:, 8:16], labels[:, 16:] = 1, 2  # 2 is the background
    colors = np.array([[0, 0, 255], [0, 255, 0]], np.uint8)
    out = overlays.color_labels(picture, labels, colors=colors).astype(int)
    assert out[12, 4].argmax() == 2
    assert out[12, 12].argmax() == 1
    assert (out[12, 8] == 255).all()  # a white line between two parts
    pale, full = out[12, 20], picture[0, 0].astype(int)
    hue = (full[1] - full[2]) / (full[0] - full[2])
    assert (pale[1] - pale[2]) / (pale[0] - pale[2]) == pytest.approx(hue, abs=0.02)


@pytest.mark.parametrize("strategy", masking.STRATEGIES)
def test_mask_frames_mask_exactly_num_masked(samples, strategy):
    frames = figures.draw_mask_frames(samples, masking=MASKING | {"strategy": strategy}, seed=0)
    num_masked = masking.num_masked(64, 0.75)
    assert len(frames) == len(figures.FRAME_PROGRESS) == 5
    assert all((mask.sum(1) == num_masked).all() for mask in frames)
    pictures = figures.mask_rows(samples, masking=MASKING | {"strategy": strategy}, seed=0, colors=None)
    hidden = np.mean([picture[:, :, 3] < 255 for row in pictures for picture in row[1:]])
    assert hidden == num_masked / 64  # also in the pictures


def test_mask_frames_follow_the_curriculum(samples):
    """From three quarters of each of four equal quadrants to three whole ones."""
    frames = figures.draw_mask_frames(samples, masking=MASKING, seed=0)
    part = samples.inputs["part_map"]
    for sample in range(3):
        per_part = [[int(mask[sample][part[sample] == k].sum()) for k in range(4)] for mask in frames]
        assert per_part[0] == [12, 12, 12, 12]
        assert sorted(per_part[-1]) == [0, 16, 16, 16]
    assert figures.frame_captions(MASKING)[2] == ("50%", "0.25")


def test_a_strategy_without_its_inputs_is_refused(reader):
    bare = figures.load_samples(reader, None, np.arange(2), img_size=32, patch_size=8)
    with pytest.raises(ValueError, match=r"part maps lack attention"):
        figures.draw_masks(bare, masking=MASKING | {"strategy": "attention"}, progress=0.0, seed=0)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_reconstruction_shows_the_image_where_it_is_visible(samples, model, norm_pix_loss):
    mask = masking.random(3, 16, 0.75, generator=torch.Generator().manual_seed(0))
    whole = figures.reconstruct_images(model, samples.images, mask, norm_pix_loss=norm_pix_loss)
    original = samples.images.permute(0, 2, 3, 1).numpy()
    hidden = np.kron(mask.view(3, 4, 4).numpy(), np.ones((8, 8), bool))
    assert np.array_equal(whole[~hidden], original[~hidden])
    assert not np.array_equal(whole[hidden], original[hidden])


def test_typical_images_have_a_large_region_with_a_high_probability():
    probabilities = np.full((4, 2, 16), 0.5)
    probabilities[0, :, :8] = [[0.9], [0.1]]  # eight patches with a high probability
    probabilities[1, :, :8] = [[0.6], [0.4]]  # the same size, a lower probability
    probabilities[2, :, :1] = [[1.0], [0.0]]  # one patch only
    for image in range(3):
        probabilities[image, :, 8 if image < 2 else 1 :] = [[0.4], [0.6]]
    probabilities[3] = [[0.2], [0.8]]  # without the first label
    first, second = overlays.most_typical(probabilities, count=9)
    assert first == [0, 1, 2]
    assert second[0] == 3


def test_a_region_shows_the_largest_connected_piece_in_color():
    image = np.full((80, 160, 3), (180, 60, 60), np.uint8)
    found = np.zeros((4, 8), bool)
    found[0, 0], found[1:3, 5:7] = True, True
    out = overlays.crop_region(image, found, size=60, color=np.array([0, 0, 255], np.uint8))
    assert out.shape == (60, 60, 4)
    assert tuple(out[30, 30]) == (180, 60, 60, 255)
    assert out[2, 2, 3] < 255
    assert len(set(out[2, 2, :3].tolist())) == 1  # gray around it
    assert (out == (0, 0, 255, 255)).all(-1).any()


def test_grids_are_images(reader, maps, model):
    size = {"count": 2, "seed": 0}
    grids = [
        figures.masks_grid(reader, maps, masking=MASKING, img_size=32, patch_size=8, colors="okabe_ito", **size),
        figures.reconstructions_grid(reader, maps, model=model, masking=MASKING, norm_pix_loss=True, **size),
    ]
    assert all(isinstance(grid, Image.Image) and grid.mode == "RGB" for grid in grids)
    assert grids[0].width > 6 * figures.TILE
    assert len(figures.choose_images(3, count=10, seed=0)) == 3


@pytest.mark.parametrize("span", [(0, 1), (0.123, 0.129), (-3, 7), (0, 14), (1e-6, 2.1e-3), (41, 9000)])
def test_ticks_are_round_and_span_the_range(span):
    ticks = charts.round_ticks(*span)
    step = ticks[1] - ticks[0]
    assert ticks[0] <= span[0] < ticks[0] + step
    assert ticks[-1] - step < span[1] <= ticks[-1] + 1e-12
    assert 2 <= len(ticks) <= 7
    assert round(step / 10 ** np.floor(np.log10(step) + 1e-9), 6) in (1, 2, 5)


def test_a_chart_goes_through_its_points_and_escapes_its_title():
    history = [{"epoch": 1, "knn_top1": 0.25, "loss": 3.0}, {"epoch": 2, "loss": 1.0}]
    assert list(charts.curves_of_history(history)) == ["loss", "knn_top1"]
    assert charts.curves_of_history(history)["knn_top1"] == [(1, 0.25)]
    svg = charts.draw_chart([(1, 3.0), (2, 1.0)], title="<loss>", percent=False)
    middle = (charts.LEFT + charts.RIGHT) / 2
    assert f'points="{middle:.1f},{charts.TOP:.1f} {charts.RIGHT:.1f},{charts.BOTTOM:.1f}"' in svg
    assert "&lt;loss&gt;" in svg
    assert "25 %" in charts.draw_chart([(1, 0.25)], title="kNN", percent=True)  # a single epoch


def test_part_tables_show_every_baseline_and_reference():
    metrics = {"fg_iou": 0.4, "miou": 0.2, "labels": 8}
    spread = {"mine": {"fg_iou": 0.0123}}
    patch = Scores(metrics, {"center_mask": {"fg_iou": 0.1}, "mine": metrics}, deviations=spread)
    pixel = Scores(metrics | {"ari_fg": -0.02}, {}, references={"perfect": {"fg_iou": 0.9}})
    patch, pixel = score_tables.part_tables({"patch": patch, "pixel": pixel})
    assert patch.columns == ["labels", "foreground IoU", "part mIoU"]
    assert patch.groups == [
        ("", [("parts", ["8", "0.400", "0.200"])]),
        (
            "baselines",
            [("one mask for all images", ["–", "0.100", "–"]), ("mine", ["8", "0.400 ± 0.012", "0.200"])],
        ),
    ]
    assert [group for group, _ in pixel.groups] == ["", score_tables.REFERENCES]
    assert pixel.groups[0][1] == [("parts", ["8", "0.400", "0.200", "−0.020"])]


def test_a_sentence_tells_how_far_the_position_explains_the_parts():
    with_truth = {"patch": Scores({"place": 0.809}, references={"perfect": {"place": 0.336}})}
    sentence = "Position on the object explains 81 % of the labels"
    assert score_tables.place_sentence(with_truth) == f"{sentence} (true parts: 34 %)."
    assert score_tables.place_sentence({"patch": Scores({"place": 0.809})}) == f"{sentence}."
    assert score_tables.place_sentence({"patch": Scores({"fg_iou": 0.5})}) == ""


def test_accuracy_bars_show_every_baseline():
    scores = Scores({"top1": 0.3, "top1_se": 0.02}, {"untrained": {"top1": 0.1}, "mine": {"top1": 0.5}})
    bars = score_tables.accuracy_bars(scores)
    assert [(bar.name, bar.error) for bar in bars] == [("encoder", 0.02), ("mine", None), ("untrained encoder", None)]
    assert all(bar.width + bar.whisker <= 1 for bar in bars)


def test_parameters_have_the_names_that_dvc_takes():
    section = {"masking": {"curriculum": {"power": 2.0}}, "betas": [0.9, 0.95], "none": {}}
    found = dict(score_tables.flatten_params(section, "pretrain"))
    assert found == {
        "pretrain.masking.curriculum.power": 2.0,
        "pretrain.betas": [0.9, 0.95],
        "pretrain.none": {},
    }


def test_a_heat_map_blends_from_dark_gray_to_the_color():
    picture, color = np.full((12, 12, 3), 100, np.uint8), np.array([250, 50, 0], np.uint8)
    for share, expected in ((0.0, [40, 40, 40]), (1.0, [175, 75, 50]), (0.5, [108, 58, 45])):
        shown = heat_maps.heat_map(picture, np.full((3, 3), share), color=color)
        assert np.abs(shown.astype(int) - expected).max() <= 1
    sides = heat_maps.heat_map(picture, np.array([[0.0, 1.0]]), color=color)[:, :, 0].astype(int)
    assert (np.diff(sides, axis=1) >= 0).all()  # smoothly from one patch's center to the other's
    assert (np.diff(sides, axis=1) < 40).all()
