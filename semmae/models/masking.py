"""Mask strategies: which patches of an image are hidden from the encoder.

Each strategy has a *core*, a pure function of uniform noise. A core computes one priority per patch and masks the
patches with the highest priority. It masks `num_masked` patches of every image, so all sequences of a batch have the
same length.

To add a strategy:

1. Write its core, `my_core(noise, mask_ratio, *, <inputs>)`, and return `top_k(priority, num_masked(n, mask_ratio))`.
2. Add an entry to `STRATEGIES`: the shape of the noise of one image, the core, and the names of the core's inputs.

`params.yaml` then accepts the entry's name as `pretrain.masking.strategy`, and the training loop passes the inputs.
`tests/models/test_masking.py` checks every entry of `STRATEGIES` against these rules for a core:

- It draws no random numbers. `noise` holds uniform float32 numbers in [0, 1), and the mask of image i depends on row i
  alone. Two ranks that share a batch therefore compute the same masks as one process.
- Its shapes are static. It loops over neither images nor parts and reads no value from the device, so `torch.compile`
  makes one graph of it.
- Its sorts are stable, its sums exact or in float64. CPU and GPU therefore give the same mask, with autocast too.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Integer, Num
from torch import Tensor

NUM_LABELS = 256  # a part map is uint8, so labels range from 0 to 255
NUM_BLOCKS = 32  # blocks drawn per image; about ten of them cover three quarters of a grid
BLOCK_AREA = (0.08, 0.4)  # smallest and largest block, as a share of the grid
BLOCK_ASPECT = (0.3, 1 / 0.3)  # smallest and largest height / width of a block
GREEN_SIGMAS = (0.75, 2.0)  # in patches; the band-pass keeps periods around 6 patches, so blobs are 3 patches wide
LOOP_INPUTS = ("grid", "curriculum_weight")  # inputs from the training loop; all others are channels of the part maps

Number = int | float
Noise = Float32[Tensor, "b ..."]
Mask = Bool[Tensor, "b n"]  # True = masked


def num_masked(n: int, mask_ratio: Number) -> int:
    """Return how many of `n` patches are masked: the formula of MAE, including its float rounding."""
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio is {mask_ratio}; expected a number between 0 and 1, both excluded")
    return n - int(n * (1 - mask_ratio))


def top_k(priority: Num[Tensor, "b n"], count: int) -> Mask:
    """Mask the `count` patches with the highest priority in every image; ties go to the lower index."""
    order = priority.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(priority, dtype=torch.bool).scatter(1, order[:, :count], True)


def random_core(noise: Float32[Tensor, "b n"], mask_ratio: Number) -> Mask:
    """Mask every patch with the same probability (He et al. 2022). The priority is the noise."""
    return top_k(noise, num_masked(noise.shape[1], mask_ratio))


def block_core(noise: Float32[Tensor, "b m 3"], mask_ratio: Number, *, grid: tuple[int, int]) -> Mask:
    """Paint random rectangles one after another until `num_masked` patches are covered (BEiT, Bao et al. 2022).

    The earlier a block covers a patch, the higher is the patch's priority. Patches that no block covers come last. The
    last block usually has more patches than are left to mask, so it is cut along a line of random direction.

    `noise` holds the shape, top and left of each block; its last row is the direction of the cut.
    """
    h, w = grid
    count = num_masked(h * w, mask_ratio)
    shape, top, left = noise[:, :-1].unbind(-1)  # (b, m) each
    shapes = torch.tensor(block_shapes(grid, count))
    shapes = shapes.to(noise.device, non_blocking=True)  # the tensor is tiny, so the asynchronous copy is safe
    height, width = shapes[(shape * len(shapes)).long()].unbind(-1)
    top, left = (top * (h - height + 1)).long(), (left * (w - width + 1)).long()
    y, x = torch.arange(h, device=noise.device), torch.arange(w, device=noise.device)
    rows = (y >= top[..., None]) & (y < (top + height)[..., None])  # (b, m, h)
    columns = (x >= left[..., None]) & (x < (left + width)[..., None])  # (b, m, w)
    covers = (rows[..., :, None] & columns[..., None, :]).flatten(2)  # (b, m, n)
    index = torch.arange(NUM_BLOCKS, dtype=torch.uint8, device=noise.device)[:, None]
    first_block = torch.where(covers, index, NUM_BLOCKS).amin(1)  # (b, n), the first block that covers the patch
    down, right = (noise[:, -1, :2] - 0.5)[..., None, None].unbind(1)  # (b, 1, 1) each
    ramp = (down * (y[:, None] / h) + right * (x / w)).flatten(1)  # in (-1, 1)
    return top_k(-(first_block + (ramp + 1) / 2), count)


def block_shapes(grid: tuple[int, int], max_area: int) -> list[tuple[int, int]]:
    """List the (height, width) of all blocks within BLOCK_ASPECT, BLOCK_AREA and `max_area` patches.

    `block_core` draws from this list uniformly. This gives a uniform area and a log-uniform aspect ratio, because
    dh dw = d(area) d(log aspect) / 2.
    """
    h, w = grid
    low, high = BLOCK_ASPECT
    largest = max(1, min(max_area, int(BLOCK_AREA[1] * h * w)))
    shapes = [(i, j) for i in range(1, h + 1) for j in range(1, w + 1) if low <= i / j <= high and i * j <= largest]
    smallest = min(BLOCK_AREA[0] * h * w, max(i * j for i, j in shapes))  # a narrow grid has no large blocks
    return [(i, j) for i, j in shapes if i * j >= smallest]


def green_noise_core(noise: Float32[Tensor, "b h w"], mask_ratio: Number) -> Mask:
    """Mask blobs of one size, without structure at smaller or larger scales (ColorMAE's green noise, Hinojosa 2024).

    The priority is Gaussian noise, filtered by the difference of two Gaussian blurs on a grid that wraps around.
    """
    h, w = noise.shape[1:]
    gaussian = torch.special.ndtri(_open_interval(noise))
    spectrum = torch.fft.rfft2(gaussian) * green_response((h, w), device=noise.device)
    return top_k(torch.fft.irfft2(spectrum, s=(h, w)).flatten(1), num_masked(h * w, mask_ratio))


def green_response(grid: tuple[int, int], *, device: torch.device | str = "cpu") -> Float[Tensor, "h w2"]:
    """Return the gain of the band-pass filter, a difference of two Gaussians, at each frequency of `rfft2`."""
    h, w = grid
    vertical = torch.fft.fftfreq(h, dtype=torch.float64, device=device)[:, None]
    horizontal = torch.fft.rfftfreq(w, dtype=torch.float64, device=device)
    squared = vertical**2 + horizontal**2  # (cycles per patch) ** 2
    narrow, wide = (torch.exp(-2 * math.pi**2 * sigma**2 * squared) for sigma in GREEN_SIGMAS)
    return narrow - wide


def attention_core(noise: Float32[Tensor, "b n"], mask_ratio: Number, *, attention: Num[Tensor, "b n"]) -> Mask:
    """Draw patches without replacement, with probabilities proportional to their attention.

    The priority is the log attention plus Gumbel noise. The k patches with the highest priority are k such draws (Kool
    et al. 2019). Patches with attention 0 come last, in random order. `attention` is finite and >= 0, on any scale.
    """
    gumbel = -torch.log(-torch.log(_open_interval(noise)))  # in (-3, 18)
    logit = torch.log(attention.double().clamp(min=1e-300))  # every positive float32 is far above 1e-300
    return top_k(logit + gumbel, num_masked(noise.shape[1], mask_ratio))


def semantic_core(
    noise: Float32[Tensor, "b m"], mask_ratio: Number, *,
    part_map: Integer[Tensor, "b n"], curriculum_weight: Float[Tensor, ""],
) -> Mask:  # fmt: skip
    """Mask the same share of every part, whole parts, or a mixture of the two (SemMAE, Li et al. 2022).

    The labels are put in random order. Label k has n_k patches, and s_k patches have labels before k in this order. The
    quota q_k is the number of masked patches of label k. `round` rounds half to even:

        a_k = round(mask_ratio * n_k)                          the same share of every part
        b_k = min(n_k, max(0, mask_ratio * n - s_k))           whole parts
        q_k = round((1 - curriculum_weight) * a_k + curriculum_weight * b_k)

    A random subset of q_k patches of each label has priority over all other patches. The sum of the quotas may differ
    from `num_masked`. Missing patches are added, and surplus patches removed, uniformly at random.

    Args:
        noise: m = NUM_LABELS + 2 n numbers: NUM_LABELS to order the labels, n to order the patches within a label, n
            to add or remove patches.
        mask_ratio: share of masked patches, in (0, 1).
        part_map: one label from 0 to 255 per patch; background is a label like any other.
        curriculum_weight: 0 masks the same share of every part, 1 masks whole parts.
    """
    n = part_map.shape[1]
    label_noise, patch_noise, correction_noise = noise.split([NUM_LABELS, n, n], dim=1)
    label = part_map.long()
    zeros = torch.zeros_like(label_noise, dtype=torch.float64)
    size = zeros.scatter_add(1, label, torch.ones_like(correction_noise, dtype=torch.float64))  # (b, NUM_LABELS), n_k

    # One sort orders the labels at random, and the patches within each label at random. Its integer key holds 24 bits
    # of label noise, 8 bits of label and 24 bits of patch noise. The label keeps labels with equal noise apart.
    key = ((label_noise.gather(1, label) * 2**24).long() * NUM_LABELS + label) * 2**24 + (patch_noise * 2**24).long()
    order = key.argsort(dim=1, stable=True)
    label = label.gather(1, order)
    size = size.gather(1, label)
    position = torch.arange(n, device=noise.device).expand_as(label)
    is_same_label = label == label.roll(1, dims=1)
    start = torch.where(is_same_label, 0, position).cummax(dim=1).values  # position of the label's first patch

    share_quota = torch.round(mask_ratio * size)  # a_k
    whole_quota = torch.minimum((mask_ratio * n - start).clamp(min=0), size)  # b_k
    curriculum_weight = curriculum_weight.double()
    quota = torch.round((1 - curriculum_weight) * share_quota + curriculum_weight * whole_quota)
    within_quota = torch.zeros_like(correction_noise).scatter(1, order, (position - start < quota).float())
    return top_k(within_quota + correction_noise, num_masked(n, mask_ratio))


class Strategy(NamedTuple):
    """A mask strategy: its core, the shape of the core's noise, and the names of the core's inputs.

    `noise = strategy.draw(...)` draws the noise of the *global* batch, the same on every rank. Each rank then calls
    `strategy(rows_of_noise, mask_ratio, **inputs)` with its own rows of the noise and of the inputs.

    Attributes:
        noise_shape: maps the grid's (height, width) to the shape of the noise of one image.
        core: computes the masks, `core(noise, mask_ratio, **inputs)`.
        inputs: names of the core's inputs. `grid` is (rows, columns), and `curriculum_weight` is a scalar tensor in
            [0, 1]. All other inputs are channels of the part maps, such as `part_map`, of shape (b, n).
    """

    noise_shape: Callable[[int, int], tuple[int, ...]]
    core: Callable[..., Tensor]
    inputs: tuple[str, ...]

    @property
    def channels(self) -> tuple[str, ...]:
        """The inputs that are channels of the part maps."""
        return tuple(name for name in self.inputs if name not in LOOP_INPUTS)

    def draw(self, b: int, grid: tuple[int, int], *, generator: torch.Generator) -> Noise:
        """Draw the noise of `b` images, on the generator's device."""
        return torch.rand((b, *self.noise_shape(*grid)), generator=generator, device=generator.device)

    def __call__(self, noise: Noise, mask_ratio: Number, **inputs: object) -> Mask:
        """Return the masks for this noise; inputs that the strategy does not name are ignored."""
        return self.core(noise, mask_ratio, **{name: inputs[name] for name in self.inputs})


STRATEGIES = {
    "random": Strategy(lambda h, w: (h * w,), random_core, ()),
    "block": Strategy(lambda h, w: (NUM_BLOCKS + 1, 3), block_core, ("grid",)),
    "green_noise": Strategy(lambda h, w: (h, w), green_noise_core, ()),
    "attention": Strategy(lambda h, w: (h * w,), attention_core, ("attention",)),
    "semantic": Strategy(lambda h, w: (2 * h * w + NUM_LABELS,), semantic_core, ("part_map", "curriculum_weight")),
}


def random(b: int, n: int, mask_ratio: Number, *, generator: torch.Generator) -> Mask:
    """Draw noise for `b` images of `n` patches, and mask them by `random_core`."""
    return random_core(STRATEGIES["random"].draw(b, (1, n), generator=generator), mask_ratio)


def block(b: int, grid: tuple[int, int], mask_ratio: Number, *, generator: torch.Generator) -> Mask:
    """Draw noise for `b` images, and mask them by `block_core`."""
    return block_core(STRATEGIES["block"].draw(b, grid, generator=generator), mask_ratio, grid=grid)


def green_noise(b: int, grid: tuple[int, int], mask_ratio: Number, *, generator: torch.Generator) -> Mask:
    """Draw noise for `b` images, and mask them by `green_noise_core`."""
    return green_noise_core(STRATEGIES["green_noise"].draw(b, grid, generator=generator), mask_ratio)


def attention(attention: Tensor, mask_ratio: Number, *, generator: torch.Generator) -> Mask:
    """Check the attention, draw noise, and mask by `attention_core`.

    Training skips these checks, because `part_maps.join` returns uint8 attention.
    """
    if attention.ndim != 2:
        raise ValueError(f"attention has shape {tuple(attention.shape)}; expected (batch, patches)")
    if not ((attention >= 0) & attention.isfinite()).all():
        raise ValueError("attention holds negative numbers, NaN or infinity; expected weights >= 0")
    b, n = attention.shape
    noise = STRATEGIES["attention"].draw(b, (1, n), generator=generator).to(attention.device)
    return attention_core(noise, mask_ratio, attention=attention)


def semantic(
    part_map: Tensor, mask_ratio: Number, curriculum_weight: Number | Float[Tensor, ""], *, generator: torch.Generator
) -> Mask:
    """Check the part map and the curriculum weight, draw noise, and mask by `semantic_core`.

    Training skips these checks: `part_maps.join` returns uint8 labels, and the curriculum weight stays in [0, 1].
    """
    if part_map.ndim != 2 or part_map.is_floating_point() or part_map.dtype == torch.bool:
        given = f"{part_map.dtype} of shape {tuple(part_map.shape)}"
        raise ValueError(f"part_map is {given}; expected integer labels of shape (batch, patches)")
    if part_map.dtype != torch.uint8 and ((part_map < 0) | (part_map >= NUM_LABELS)).any():
        raise ValueError(f"part_map holds labels outside 0...{NUM_LABELS - 1}")
    if not isinstance(curriculum_weight, Tensor) and not 0 <= curriculum_weight <= 1:
        raise ValueError(f"curriculum_weight is {curriculum_weight}; expected a number from 0 to 1")
    b, n = part_map.shape
    noise = STRATEGIES["semantic"].draw(b, (1, n), generator=generator).to(part_map.device)
    weight = torch.as_tensor(curriculum_weight, dtype=torch.float64)
    return semantic_core(noise, mask_ratio, part_map=part_map, curriculum_weight=weight)


def curriculum_weight(progress: Number, *, start: Number, end: Number, power: Number) -> float:
    """Return start + (end - start) * progress ** power.

    `progress` is step / (steps - 1) of the whole run. With `power` above 1 the value changes slowly at first.
    """
    if not (0 <= start <= 1 and 0 <= end <= 1 and power > 0):
        given = f"curriculum_weight is {{start: {start}, end: {end}, power: {power}}}"
        raise ValueError(f"{given}; expected start and end from 0 to 1, power above 0")
    assert 0 <= progress <= 1, progress
    return float(start + (end - start) * progress**power)


def subsample_mask(mask: Mask, noise: Float32[Tensor, "b n"], count: int) -> Mask:
    """Keep `count` of the masked patches of every image, chosen uniformly at random."""
    return top_k(torch.where(mask, noise, noise - 1), count)


def split_indices(
    mask: Mask, num_masked: int
) -> tuple[Integer[Tensor, "b k"], Integer[Tensor, "b m"], Integer[Tensor, "b n"]]:
    """Return the indices of the visible patches, the indices of the masked patches, and the inverse permutation.

    Visible and masked indices are ascending. Gathering `cat([visible, masked], dim=1)` with the inverse permutation
    restores the patch order.
    """
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    keep, masked = order.split([mask.shape[1] - num_masked, num_masked], dim=1)
    return keep, masked, order.argsort(dim=1)


def _open_interval(noise: Noise) -> Float[Tensor, "b ..."]:
    """Add 2 ** -25 to noise in [0, 1), half of its spacing, so that its logarithm is finite."""
    return noise.double() + 2**-25
