"""Check the rules for every mask strategy, then the distribution of each strategy's masks."""

import importlib.util
import math
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from semmae.models import masking

GRID, RATIO, B = (14, 14), 0.75, 32
N = GRID[0] * GRID[1]
EVERY = pytest.mark.parametrize("name", masking.STRATEGIES)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def example_inputs(b: int = B, grid: tuple[int, int] = GRID, labels: int = 7, curriculum_weight: float = 0.4) -> dict:
    """Return inputs for every strategy: random labels, attention with zeros, a curriculum weight."""
    n = grid[0] * grid[1]
    rng = np.random.default_rng(5)
    attention = rng.random((b, n), dtype=np.float32) * (rng.random((b, n)) < 0.9)
    return {
        "grid": grid,
        "part_map": torch.from_numpy(rng.integers(0, labels, (b, n), dtype=np.uint8)),
        "attention": torch.from_numpy(attention.astype(np.float32)),
        "curriculum_weight": torch.tensor(curriculum_weight),
    }


def rows(inputs: dict, selected: slice) -> dict:
    return {key: value[selected] if key in ("part_map", "attention") else value for key, value in inputs.items()}


def uniform(counts: np.ndarray) -> bool:
    """Return whether counts are compatible with a uniform distribution (chi-square, p > 1e-4)."""
    return stats.chisquare(counts).pvalue > 1e-4


# ----------------------------------------------------------------------------------------- rules for all strategies


@EVERY
@pytest.mark.parametrize("mask_ratio", [0.05, 0.3, 0.5, 0.6, 0.75, 0.9])
@pytest.mark.parametrize("grid", [(14, 14), (7, 12), (4, 4), (1, 30), (9, 1), (3, 5), (1, 1)])
def test_every_strategy_masks_exactly_num_masked_patches(name, grid, mask_ratio):
    n = grid[0] * grid[1]
    strategy = masking.STRATEGIES[name]
    for curriculum_weight in (0.0, 0.4, 1.0):
        noise = strategy.draw(8, grid, generator=generator())
        mask = strategy(noise, mask_ratio, **example_inputs(8, grid, curriculum_weight=curriculum_weight))
        assert mask.shape == (8, n)
        assert mask.dtype == torch.bool
        assert mask.sum(1).tolist() == [n - int(n * (1 - mask_ratio))] * 8


@EVERY
def test_the_generator_determines_the_mask(name):
    strategy, inputs = masking.STRATEGIES[name], example_inputs()
    first, same, different = (
        strategy(strategy.draw(B, GRID, generator=generator(s)), RATIO, **inputs) for s in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, different)


def test_the_public_functions_draw_noise_and_call_the_core():
    inputs = example_inputs()
    public = {
        "random": masking.random(B, N, RATIO, generator=generator()),
        "block": masking.block(B, GRID, RATIO, generator=generator()),
        "green_noise": masking.green_noise(B, GRID, RATIO, generator=generator()),
        "attention": masking.attention(inputs["attention"], RATIO, generator=generator()),
        "semantic": masking.semantic(inputs["part_map"], RATIO, inputs["curriculum_weight"], generator=generator()),
    }
    assert public.keys() == masking.STRATEGIES.keys()
    for name, strategy in masking.STRATEGIES.items():
        assert torch.equal(public[name], strategy(strategy.draw(B, GRID, generator=generator()), RATIO, **inputs))


@EVERY
def test_a_rank_computes_from_its_noise_the_same_masks_as_one_process(name):
    strategy, inputs = masking.STRATEGIES[name], example_inputs()
    noise = strategy.draw(B, GRID, generator=generator())
    whole = strategy(noise, RATIO, **inputs)
    for selected in (slice(0, B // 2), slice(B // 2, B), slice(3, 4)):
        assert torch.equal(strategy(noise[selected], RATIO, **rows(inputs, selected)), whole[selected])


@EVERY
def test_samples_differ_from_each_other(name):
    inputs = {
        key: value[:1].expand(B, -1) if key in ("part_map", "attention") else value
        for key, value in example_inputs().items()
    }
    strategy = masking.STRATEGIES[name]
    assert len(strategy(strategy.draw(B, GRID, generator=generator()), RATIO, **inputs).unique(dim=0)) == B


@EVERY
def test_autocast_does_not_change_the_masks(name):
    strategy, inputs = masking.STRATEGIES[name], example_inputs()
    noise = strategy.draw(B, GRID, generator=generator())
    with torch.autocast("cpu", torch.bfloat16):
        mask = strategy(noise, RATIO, **inputs)
    assert torch.equal(mask, strategy(noise, RATIO, **inputs))


@EVERY
def test_the_core_compiles_once_without_a_graph_break(name):
    """Load the module without the shape checks of the tests, which torch.compile cannot trace."""
    spec = importlib.util.spec_from_file_location("plain_masking", masking.__file__)
    plain = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plain)
    strategy = plain.STRATEGIES[name]
    compiled = torch.compile(strategy.core, fullgraph=True, backend="aot_eager", dynamic=False)
    for step, curriculum_weight in enumerate((0.0, 0.3, 0.7, 1.0)):
        noise = strategy.draw(B, GRID, generator=generator(step))
        inputs = {key: example_inputs(curriculum_weight=curriculum_weight)[key] for key in strategy.inputs}
        with torch.compiler.set_stance("fail_on_recompile" if step else "default"):
            mask = compiled(noise, RATIO, **inputs)
        assert torch.equal(mask, strategy.core(noise, RATIO, **inputs))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@EVERY
def test_cpu_and_gpu_agree(name):
    strategy, inputs = masking.STRATEGIES[name], example_inputs()
    noise = strategy.draw(B, GRID, generator=generator())
    moved = {key: value.cuda() if key in ("part_map", "attention") else value for key, value in inputs.items()}
    assert torch.equal(strategy(noise.cuda(), RATIO, **moved).cpu(), strategy(noise, RATIO, **inputs))


# ------------------------------------------------------------------------------------------- num_masked and indices


@pytest.mark.parametrize(
    ("n", "mask_ratio", "expected"),
    [(196, 0.75, 147), (196, 0.6, 118), (784, 0.75, 588), (36, 0.75, 27), (10, 0.9, 10)],
)
def test_num_masked_is_the_formula_of_mae(n, mask_ratio, expected):
    # (10, 0.9): 1 - 0.9 < 0.1 in floating point, so all patches are masked.
    assert masking.num_masked(n, mask_ratio) == expected


@pytest.mark.parametrize("mask_ratio", [0, 1, -0.5, 1.5, float("nan")])
def test_a_ratio_outside_0_and_1_is_refused(mask_ratio):
    with pytest.raises(ValueError, match=r"mask_ratio is .*; expected a number between 0 and 1"):
        masking.random(2, 16, mask_ratio, generator=generator())


def test_indices_split_a_sequence_and_restore_it():
    mask = masking.random(B, N, RATIO, generator=generator())
    keep, masked, restore = masking.split_indices(mask, 147)
    assert not mask.gather(1, keep).any()
    assert mask.gather(1, masked).all()
    assert (keep.diff(dim=1) > 0).all()
    x = torch.rand(B, N)
    apart = torch.cat([x.gather(1, keep), x.gather(1, masked)], dim=1)
    assert torch.equal(apart.gather(1, restore), x)


# ----------------------------------------------------------------------------------------------- random and attention


def frequencies(mask: torch.Tensor, subsets: list[tuple[int, ...]]) -> np.ndarray:
    """Count in how many images each subset of patches is the masked subset."""
    code = (mask.long() << torch.arange(mask.shape[1])).sum(1)
    return np.array([(code == sum(1 << i for i in subset)).sum().item() for subset in subsets])


def test_random_gives_every_subset_the_same_chance():
    subsets = list(combinations(range(5), 3))
    counts = frequencies(masking.random(20_000, 5, 0.55, generator=generator()), subsets)
    assert counts.sum() == 20_000
    assert uniform(counts)


def test_a_subsampled_mask_has_the_exact_size_and_takes_every_masked_patch_equally_often():
    mask = masking.random(1, 12, 0.75, generator=torch.Generator().manual_seed(0)).expand(4000, -1)
    noise = torch.rand(4000, 12, generator=torch.Generator().manual_seed(1))
    subset = masking.subsample_mask(mask, noise, 4)
    assert (subset.sum(1) == 4).all()
    assert not (subset & ~mask).any()
    frequency = subset[:, mask[0]].double().mean(0)
    assert (frequency - 4 / 9).abs().max() < 4 * (4 / 9 * 5 / 9 / 4000) ** 0.5
    assert torch.equal(masking.subsample_mask(mask, noise, 9), mask)


@pytest.mark.parametrize("weights", [(1.0, 2.0, 3.0, 4.0), (1e-4, 1.0, 1.0, 50.0)])
def test_attention_draws_without_replacement_in_proportion(weights):
    subsets = list(combinations(range(4), 2))
    total = sum(weights)

    def chance(order: tuple[int, ...]) -> float:
        first, second = (weights[i] for i in order)
        return first / total * second / (total - first)

    expected = np.array([sum(chance(order) for order in permutations(subset)) for subset in subsets])
    attention = torch.tensor(weights).expand(50_000, -1)
    counts = frequencies(masking.attention(attention, 0.5, generator=generator()), subsets)
    assert counts.sum() == 50_000
    assert (np.abs(counts - 50_000 * expected) <= 5 * np.sqrt(50_000 * expected) + 1).all()


def test_attention_takes_patches_of_weight_0_last_and_at_random():
    enough = torch.tensor([0.0, 1e-30, 1.0, 0.0, 1e30, 1.0]).expand(1000, -1)
    assert not masking.attention(enough, 0.5, generator=generator())[:, [0, 3]].any()
    short = torch.tensor([0, 0, 0, 0, 7, 1], dtype=torch.uint8).expand(20_000, -1)
    mask = masking.attention(short, 0.7, generator=generator())  # 5 of 6
    assert mask[:, 4:].all()
    assert uniform((~mask[:, :4]).sum(0).numpy())


def test_zero_attention_gives_random_masks():
    counts = frequencies(
        masking.attention(torch.zeros(20_000, 4), 0.5, generator=generator()), list(combinations(range(4), 2))
    )
    assert counts.sum() == 20_000
    assert uniform(counts)


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_attention_with_invalid_weights_is_refused(wrong):
    with pytest.raises(ValueError, match="expected weights >= 0"):
        masking.attention(torch.tensor([[1.0, wrong]]), 0.5, generator=generator())


# ------------------------------------------------------------------------------------------------ block and green_noise


@pytest.mark.parametrize("mask_ratio", [0.1, 0.4, 0.75])
@pytest.mark.parametrize("grid", [(14, 14), (8, 12)])
def test_a_block_mask_is_painted_block_by_block(grid, mask_ratio):
    """Compare with naive painting: whole blocks while they fit, then a part of the next block."""
    h, w = grid
    strategy, count = masking.STRATEGIES["block"], masking.num_masked(h * w, mask_ratio)
    shapes = masking.block_shapes(grid, count)
    noise = strategy.draw(B, grid, generator=generator())
    for mask, blocks in zip(strategy(noise, mask_ratio, grid=grid).view(B, h, w).numpy(), noise.numpy(), strict=True):
        painted, step = np.zeros(grid, bool), 0
        while painted.sum() < count:
            before = painted.copy()
            shape, top, left = blocks[step]
            height, width = shapes[int(shape * len(shapes))]
            y, x = int(top * (h - height + 1)), int(left * (w - width + 1))
            assert y + height <= h
            assert x + width <= w
            painted[y : y + height, x : x + width] = True
            step += 1
        assert mask[before].all()
        assert painted[mask].all()
        new = mask & ~before
        assert (ndimage.label(new | before)[0][new] > 0).all()


@pytest.mark.parametrize("mask_ratio", [0.1, 0.4, 0.75])
@pytest.mark.parametrize("grid", [(14, 14), (8, 12), (1, 100), (2, 2), (1, 1)])
def test_blocks_stay_within_aspect_and_area(grid, mask_ratio):
    count = masking.num_masked(grid[0] * grid[1], mask_ratio)
    for height, width in masking.block_shapes(grid, count):
        assert 0.3 <= height / width <= 1 / 0.3
        assert height <= grid[0]
        assert width <= grid[1]
        assert height * width <= max(1, min(count, 0.4 * grid[0] * grid[1]))


def pieces(mask: torch.Tensor) -> float:
    """Return the mean number of connected components of the masked patches."""
    return float(np.mean([ndimage.label(sample.view(GRID).numpy())[1] for sample in mask]))


def test_block_masks_are_connected_and_random_masks_are_not():
    block, random = (
        masking.block(100, GRID, 0.4, generator=generator()), masking.random(100, N, 0.4, generator=generator()),
    )  # fmt: skip
    assert pieces(block) < 2.5
    assert pieces(random) > 15


def test_block_masks_are_symmetric_on_average():
    share = masking.block(6000, GRID, RATIO, generator=generator()).view(-1, *GRID).float().mean(0)
    assert (share - share.flip(0)).abs().max() < 0.04
    assert (share - share.flip(1)).abs().max() < 0.04
    assert (share - share.T).abs().max() < 0.04


def test_the_band_pass_is_a_difference_of_gaussian_blurs():
    noise = np.random.default_rng(0).normal(size=(40, 40))
    narrow, wide = (ndimage.gaussian_filter(noise, sigma, mode="wrap", truncate=8) for sigma in masking.GREEN_SIGMAS)
    filtered = np.fft.irfft2(np.fft.rfft2(noise) * masking.green_response((40, 40)).numpy(), s=(40, 40))
    # The kernels of ndimage are sampled, so they are not exactly Gaussian.
    assert np.corrcoef(filtered.ravel(), (narrow - wide).ravel())[0, 1] > 0.998


def power(mask: torch.Tensor, grid: tuple[int, int]) -> tuple[float, float, float]:
    """Return the mean spectral power below, in and above the band, relative to the mean over all frequencies."""
    signal = mask.view(-1, *grid).double()
    spectrum = torch.fft.fft2(signal - signal.mean((1, 2), keepdim=True)).abs().square().mean(0)
    frequency = torch.hypot(torch.fft.fftfreq(grid[0])[:, None], torch.fft.fftfreq(grid[1]))
    bands = ((frequency > 0) & (frequency < 0.06), (frequency > 0.12) & (frequency < 0.24), frequency > 0.4)
    return tuple((spectrum[band].mean() / spectrum.mean()).item() for band in bands)


def test_green_noise_masks_are_band_limited_and_random_masks_are_white():
    grid = (32, 32)
    low, band, high = power(masking.green_noise(50, grid, 0.5, generator=generator()), grid)
    assert band > 4 * low
    assert band > 4 * high
    assert all(0.9 < white < 1.1 for white in power(masking.random(50, 1024, RATIO, generator=generator()), grid))


@pytest.mark.parametrize("mask_ratio", [0.3, 0.75])
def test_green_noise_masks_every_position_equally_often(mask_ratio):
    counts = masking.green_noise(4000, (7, 9), mask_ratio, generator=generator()).sum(0).numpy()
    expected = 4000 * masking.num_masked(63, mask_ratio) / 63
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


# ------------------------------------------------------------------------------------------------------------- semantic


def naive_semantic(
    noise: np.ndarray, mask_ratio: float, labels: np.ndarray, curriculum_weight: float
) -> tuple[list, dict]:
    """Return the mask of one image and the quota of every label, step by step as `semantic_core` documents."""
    n, label_noise, patch_noise, rest_noise = len(labels), noise[:256], noise[256 : -len(labels)], noise[-len(labels) :]
    spent, quota, within_quota = 0, {}, set()
    for label in sorted(set(labels.tolist()), key=lambda label: label_noise[label]):
        members = sorted(np.flatnonzero(labels == label), key=lambda i: patch_noise[i])
        intra = round(mask_ratio * len(members))
        inter = min(len(members), max(0.0, mask_ratio * n - spent))
        spent += len(members)
        quota[label] = round((1 - curriculum_weight) * intra + curriculum_weight * inter)
        within_quota |= set(members[: quota[label]])
    order = sorted(range(n), key=lambda i: (i not in within_quota, -rest_noise[i]))
    masked = set(order[: n - int(n * (1 - mask_ratio))])
    return [i in masked for i in range(n)], quota


@pytest.mark.parametrize("curriculum_weight", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(
    ("n", "labels", "mask_ratio"),
    [(196, 7, 0.75), (196, 1, 0.75), (64, 3, 0.6), (256, 256, 0.5), (49, 12, 0.35), (9, 4, 0.9)],
)
def test_semantic_equals_the_naive_computation(n, labels, mask_ratio, curriculum_weight):
    strategy = masking.STRATEGIES["semantic"]
    noise = strategy.draw(12, (1, n), generator=generator(3))
    values = np.random.default_rng(1).permutation(256)[:labels]  # arbitrary labels, not only the smallest
    part_map = values[np.random.default_rng(2).integers(0, labels, (12, n))].astype(np.uint8)
    inputs = {
        "part_map": torch.from_numpy(part_map),
        "curriculum_weight": torch.tensor(curriculum_weight, dtype=torch.float64),
    }
    masks = strategy(noise, mask_ratio, **inputs)
    for sample in range(12):
        mask, quota = naive_semantic(noise[sample].numpy(), mask_ratio, part_map[sample], curriculum_weight)
        assert masks[sample].tolist() == mask
        assert abs(sum(quota.values()) - sum(mask)) <= len(quota)


def shares(mask: torch.Tensor, part_map: torch.Tensor, labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the number of patches and the number of masked patches, per sample and label."""
    hot = torch.nn.functional.one_hot(part_map.long(), labels)
    return hot.sum(1), (hot * mask[..., None]).sum(1)


@pytest.mark.parametrize("mask_ratio", [0.75, 0.6])
def test_curriculum_weight_0_masks_the_same_share_of_every_part(mask_ratio):
    part_map = example_inputs(200)["part_map"]
    size, masked = shares(masking.semantic(part_map, mask_ratio, 0, generator=generator()), part_map, 7)
    missing = masked - torch.round(mask_ratio * size.double())
    assert (missing.abs().sum(1) == missing.sum(1).abs()).all()  # patches are only added or only removed
    assert missing.sum(1).abs().max() <= 7


@pytest.mark.parametrize(
    ("mask_ratio", "partly"),
    [(0.75, 1), (0.6, 2)],  # 0.6 * 196 is not an integer, so one more part may be masked partly
)
def test_curriculum_weight_1_masks_whole_parts(mask_ratio, partly):
    part_map = example_inputs(200)["part_map"]
    size, masked = shares(masking.semantic(part_map, mask_ratio, 1, generator=generator()), part_map, 7)
    assert ((masked > 0) & (masked < size)).sum(1).max() <= partly
    assert ((masked == size) & (size > 0)).any(1).all()


def test_the_order_of_the_parts_is_drawn_uniformly_for_every_sample():
    part_map = torch.tensor([4, 9, 200], dtype=torch.uint8).repeat_interleave(6).expand(12_000, -1)
    first, first_two = (masking.semantic(part_map, ratio, 1.0, generator=generator()) for ratio in (1 / 3, 2 / 3))
    # Both masks use the same noise, so they mask the first part of one order, and its first two parts.
    first, first_two = first[:, ::6].long(), first_two[:, ::6].long()
    assert (first.sum(1) == 1).all()
    assert (first_two.sum(1) == 2).all()
    order = first.argmax(1) * 3 + (first_two - first).argmax(1)
    counts = order.bincount(minlength=9)
    assert uniform(counts[counts > 0].numpy())
    assert (counts > 0).sum() == 6
    pairs = (order[:-1] * 9 + order[1:]).unique(return_counts=True)[1]
    assert len(pairs) == 36
    assert uniform(pairs.numpy())  # the orders of neighboring samples are independent


@pytest.mark.parametrize("curriculum_weight", [0.0, 0.3, 1.0])
def test_inside_a_part_every_patch_is_equally_likely(curriculum_weight):
    part_map = torch.tensor([0] * 5 + [1] * 14 + [2] * 10 + [1] * 6 + [0] * 1, dtype=torch.uint8)
    mask = masking.semantic(part_map.expand(8000, -1), 0.65, curriculum_weight, generator=generator())
    for label in range(3):
        counts = mask[:, part_map == label].sum(0).double().numpy()
        share = counts.mean() / 8000
        deviation = np.sqrt(8000 * share * (1 - share))
        assert ((counts - counts.mean()) ** 2).sum() / deviation**2 < stats.chi2(len(counts)).isf(1e-4)


@pytest.mark.parametrize("curriculum_weight", [0.0, 0.5, 1.0])
def test_one_label_gives_random_masks(curriculum_weight):
    part_map = torch.full((20_000, 5), 255, dtype=torch.uint8)
    counts = frequencies(
        masking.semantic(part_map, 0.55, curriculum_weight, generator=generator()), list(combinations(range(5), 3))
    )
    assert counts.sum() == 20_000
    assert uniform(counts)


def test_renaming_the_labels_does_not_change_the_masks():
    inputs, strategy = example_inputs(), masking.STRATEGIES["semantic"]
    noise = strategy.draw(B, GRID, generator=generator())
    renamed = torch.from_numpy(np.random.default_rng(0).permutation(256))
    moved = noise.clone()
    moved[:, renamed] = noise[:, :256]  # each part keeps its noise under its new label
    relabeled = inputs | {"part_map": renamed[inputs["part_map"].long()].to(torch.uint8)}
    assert torch.equal(strategy(moved, RATIO, **relabeled), strategy(noise, RATIO, **inputs))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
def test_labels_may_be_any_integers_from_0_to_255(dtype):
    part_map = example_inputs(labels=256)["part_map"]
    expected = masking.semantic(part_map, RATIO, 0.5, generator=generator())
    assert torch.equal(masking.semantic(part_map.to(dtype), RATIO, 0.5, generator=generator()), expected)


@pytest.mark.parametrize(
    ("part_map", "curriculum_weight", "message"),
    [
        (torch.zeros(2, 16, dtype=torch.int64) - 1, 0.5, "labels outside 0...255"),
        (torch.full((2, 16), 256), 0.5, "labels outside 0...255"),
        (torch.zeros(2, 16), 0.5, "part_map is torch.float32 of shape .*; expected integer labels"),
        (torch.zeros(2, 16, dtype=torch.bool), 0.5, "part_map is torch.bool of shape .*; expected integer labels"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), 0.5, r"of shape \(2, 4, 4\); expected integer labels"),
        (torch.zeros(2, 16, dtype=torch.uint8), 1.5, "curriculum_weight is 1.5; expected a number from 0 to 1"),
    ],
)
def test_semantic_refuses_invalid_inputs(part_map, curriculum_weight, message):
    with pytest.raises(ValueError, match=message):
        masking.semantic(part_map, RATIO, curriculum_weight, generator=generator())


# ----------------------------------------------------------------------------------------------------------- curriculum


def test_the_curriculum_rises_from_start_to_end_slowly_at_first():
    values = [masking.curriculum_weight(step / 10, start=0.0, end=1.0, power=2.0) for step in range(11)]
    assert values == pytest.approx([(step / 10) ** 2 for step in range(11)])
    assert masking.curriculum_weight(0.0, start=0.8, end=0.2, power=3.0) == 0.8
    assert masking.curriculum_weight(1.0, start=0.8, end=0.2, power=3.0) == pytest.approx(0.2)


@pytest.mark.parametrize("wrong", [{"start": -0.1}, {"end": 1.1}, {"power": 0.0}, {"start": math.nan}])
def test_a_curriculum_outside_its_limits_is_refused(wrong):
    with pytest.raises(ValueError, match="expected start and end from 0 to 1, power above 0"):
        masking.curriculum_weight(0.5, **({"start": 0.0, "end": 1.0, "power": 2.0} | wrong))
