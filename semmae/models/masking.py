"""Which patches to remove: every strategy is a priority per patch, and one exact top-k.

- `num_masked(n, mask_ratio)`: how many patches every sample loses, exactly.
- `random`, `block`, `green_noise`, `attention`, `semantic`: the strategies. Each draws its noise and calls a pure core.
- `STRATEGIES`: the same five by name, for callers that need the noise of the *global* batch: draw it, slice, call.
- `curriculum_weight`: the curriculum from easy (a share of every part) to hard (whole parts).
- `subsample_mask`: some of a mask's patches. `split_indices`: a mask as MAE's index vectors.

A core takes its noise as an argument: uniform float32 numbers in [0, 1), first axis the batch, so that sample i depends
on row i alone. Its shapes are static, it loops over neither samples nor parts and never waits for the device: it
compiles without a graph break. Sorts are stable, sums exact or in float64: CPU and GPU agree, under autocast too.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Integer, Num
from torch import Tensor

NUM_LABELS = 256  # a part map is uint8: any of these labels may occur
NUM_BLOCKS = 32  # blocks painted per sample; ten of them usually cover three quarters of a grid
BLOCK_AREA = (0.08, 0.4)  # smallest and largest block, as a share of the grid
BLOCK_ASPECT = (0.3, 1 / 0.3)  # height / width
GREEN_SIGMAS = (0.75, 2.0)  # patches; their difference passes periods around 6 patches: blobs 3 patches wide

Number = int | float
Noise = Float32[Tensor, "b ..."]
Mask = Bool[Tensor, "b n"]  # True = removed


def num_masked(n: int, mask_ratio: Number) -> int:
    """How many of `n` patches are removed: MAE's formula, float rounding included."""
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio is {mask_ratio}; expected a number between 0 and 1, both excluded")
    return n - int(n * (1 - mask_ratio))


def random(b: int, n: int, mask_ratio: Number, *, generator: torch.Generator) -> Mask:
    """Every patch equally likely."""
    return random_core(_uniform((b, n), generator), mask_ratio)


def random_core(noise: Float32[Tensor, "b n"], mask_ratio: Number) -> Mask:
    """Priority: the noise."""
    return _top(noise, num_masked(noise.shape[1], mask_ratio))


def subsample_mask(mask: Mask, noise: Float32[Tensor, "b n"], count: int) -> Mask:
    """`count` of the removed patches of every sample, each as likely as another."""
    return _top(torch.where(mask, noise, noise - 1), count)


def block(b: int, grid: tuple[int, int], mask_ratio: Number, *, generator: torch.Generator) -> Mask:
    """Random rectangles, painted one after another until `num_masked` patches are covered (BEiT)."""
    return block_core(_uniform((b, NUM_BLOCKS + 1, 3), generator), mask_ratio, grid=grid)


def block_core(noise: Float32[Tensor, "b m 3"], mask_ratio: Number, *, grid: tuple[int, int]) -> Mask:
    """Priority: the earlier a block covers the patch, the higher; the last block is cut along a random line.

    The last row of the noise is the direction of the cut. Patches that no block covers come last, in the same order.
    """
    h, w = grid
    count = num_masked(h * w, mask_ratio)
    shape, top, left = noise[:, :-1].unbind(-1)  # (b, m) each
    shapes = torch.tensor(block_shapes(grid, count))
    shapes = shapes.to(noise.device, non_blocking=True)  # so little, CUDA copies it aside
    height, width = shapes[(shape * len(shapes)).long()].unbind(-1)
    top, left = (top * (h - height + 1)).long(), (left * (w - width + 1)).long()
    y, x = torch.arange(h, device=noise.device), torch.arange(w, device=noise.device)
    rows = (y >= top[..., None]) & (y < (top + height)[..., None])  # (b, m, h)
    columns = (x >= left[..., None]) & (x < (left + width)[..., None])  # (b, m, w)
    covers = (rows[..., :, None] & columns[..., None, :]).flatten(2)  # (b, m, n)
    index = torch.arange(NUM_BLOCKS, dtype=torch.uint8, device=noise.device)[:, None]
    first = torch.where(covers, index, NUM_BLOCKS).amin(1)  # (b, n)
    down, right = (noise[:, -1, :2] - 0.5)[..., None, None].unbind(1)  # (b, 1, 1) each
    ramp = (down * (y[:, None] / h) + right * (x / w)).flatten(1)  # in (-1, 1)
    return _top(-(first + (ramp + 1) / 2), count)


def block_shapes(grid: tuple[int, int], largest: int) -> list[tuple[int, int]]:
    """The blocks (height, width) to choose from with equal chance: within the limits of aspect and area, and `largest`.

    Equal chance over height and width is a uniform area and a log-uniform aspect: dh dw = d(area) d(log aspect) / 2.
    """
    h, w = grid
    low, high = BLOCK_ASPECT
    most = max(1, min(largest, int(BLOCK_AREA[1] * h * w)))
    shapes = [(i, j) for i in range(1, h + 1) for j in range(1, w + 1) if low <= i / j <= high and i * j <= most]
    least = min(BLOCK_AREA[0] * h * w, max(i * j for i, j in shapes))  # a thin grid has no large blocks
    return [(i, j) for i, j in shapes if i * j >= least]


def green_noise(b: int, grid: tuple[int, int], mask_ratio: Number, *, generator: torch.Generator) -> Mask:
    """Blobs of one size, without structure at small or large scale: band-passed Gaussian noise (ColorMAE's green)."""
    return green_noise_core(_uniform((b, *grid), generator), mask_ratio)


def green_noise_core(noise: Float32[Tensor, "b h w"], mask_ratio: Number) -> Mask:
    """Priority: Gaussian noise through a difference of two Gaussian blurs, on the torus (no border is special)."""
    h, w = noise.shape[1:]
    gaussian = torch.special.ndtri(_open(noise))
    spectrum = torch.fft.rfft2(gaussian) * green_response((h, w), device=noise.device)
    return _top(torch.fft.irfft2(spectrum, s=(h, w)).flatten(1), num_masked(h * w, mask_ratio))


def green_response(grid: tuple[int, int], *, device: torch.device | str = "cpu") -> Float[Tensor, "h w2"]:
    """The gain of the band-pass at each frequency of `rfft2`: the transform of a Gaussian is a Gaussian."""
    h, w = grid
    vertical = torch.fft.fftfreq(h, dtype=torch.float64, device=device)[:, None]
    horizontal = torch.fft.rfftfreq(w, dtype=torch.float64, device=device)
    squared = vertical**2 + horizontal**2  # cycles per patch
    narrow, wide = (torch.exp(-2 * math.pi**2 * sigma**2 * squared) for sigma in GREEN_SIGMAS)
    return narrow - wide


def attention(attention: Tensor, mask_ratio: Number, *, generator: torch.Generator) -> Mask:
    """Draw patches one after another without replacement, in proportion to their attention (b, n) >= 0."""
    if attention.ndim != 2:
        raise ValueError(f"attention has shape {tuple(attention.shape)}; expected (batch, patches)")
    if not ((attention >= 0) & attention.isfinite()).all():
        raise ValueError("attention holds negative numbers, NaN or infinity; expected weights >= 0")
    noise = _uniform((*attention.shape,), generator).to(attention.device)
    return attention_core(noise, mask_ratio, attention=attention)


def attention_core(noise: Float32[Tensor, "b n"], mask_ratio: Number, *, attention: Num[Tensor, "b n"]) -> Mask:
    """Priority: log attention plus Gumbel noise, whose top k are k draws without replacement (Gumbel top-k).

    Patches of attention 0 come after all others, in random order.
    """
    gumbel = -torch.log(-torch.log(_open(noise)))  # in (-3, 18)
    logit = torch.log(attention.double().clamp(min=1e-300))  # no positive float32 comes near 1e-300
    return _top(logit + gumbel, num_masked(noise.shape[1], mask_ratio))


def semantic(
    part_map: Tensor, mask_ratio: Number, curriculum_weight: Number | Float[Tensor, ""], *,
    generator: torch.Generator,
) -> Mask:  # fmt: skip
    """A share `mask_ratio` of every part (curriculum_weight 0), or whole parts in random order (1), or between the two.

    `part_map` (b, n) holds a label 0...255 per patch of the encoder's grid; background is a label like any other.
    """
    if part_map.ndim != 2 or part_map.is_floating_point() or part_map.dtype == torch.bool:
        given = f"{part_map.dtype} of shape {tuple(part_map.shape)}"
        raise ValueError(f"part_map is {given}; expected integer labels of shape (batch, patches)")
    if part_map.dtype != torch.uint8 and ((part_map < 0) | (part_map >= NUM_LABELS)).any():
        raise ValueError(f"part_map holds labels outside 0...{NUM_LABELS - 1}")
    if not isinstance(curriculum_weight, Tensor) and not 0 <= curriculum_weight <= 1:
        raise ValueError(f"curriculum_weight is {curriculum_weight}; expected a number from 0 to 1")
    b, n = part_map.shape
    noise = _uniform((b, 2 * n + NUM_LABELS), generator).to(part_map.device)
    return semantic_core(
        noise, mask_ratio, part_map=part_map, curriculum_weight=torch.as_tensor(curriculum_weight, dtype=torch.float64)
    )


def semantic_core(
    noise: Float32[Tensor, "b m"], mask_ratio: Number, *,
    part_map: Integer[Tensor, "b n"], curriculum_weight: Float[Tensor, ""],
) -> Mask:  # fmt: skip
    """Priority: inside its label's quota before outside it, then noise.

    With n_k patches of label k: intra quota a_k = round(mask_ratio n_k); inter quota b_k: labels in random order are
    masked wholly until the budget mask_ratio n is spent; quota q_k = round((1 - curriculum_weight) a_k + curriculum_weight b_k).
    Rounding is half to even. What the quotas miss of `num_masked` is trimmed or filled uniformly at random.
    """
    n = part_map.shape[1]
    walk, within, fill = noise.split([NUM_LABELS, n, n], dim=1)
    label = part_map.long()
    size = torch.zeros_like(walk, dtype=torch.float64).scatter_add(1, label, torch.ones_like(fill, dtype=torch.float64))

    # One sort puts the labels in the order of the walk and the patches of a label in random order.
    # Integer keys: 24 bits of noise per label, 8 bits of label should two noises be equal, 24 bits of noise per patch.
    key = ((walk.gather(1, label) * 2**24).long() * NUM_LABELS + label) * 2**24 + (within * 2**24).long()
    order = key.argsort(dim=1, stable=True)
    label = label.gather(1, order)
    size = size.gather(1, label)
    place = torch.arange(n, device=noise.device).expand_as(label)
    start = torch.where(label == label.roll(1, dims=1), 0, place).cummax(dim=1).values  # place where this label begins

    intra = torch.round(mask_ratio * size)
    inter = torch.minimum((mask_ratio * n - start).clamp(min=0), size)  # what the walk has left on reaching the label
    curriculum_weight = curriculum_weight.double()
    quota = torch.round((1 - curriculum_weight) * intra + curriculum_weight * inter)
    inside = torch.zeros_like(fill).scatter(1, order, (place - start < quota).float())
    return _top(inside + fill, num_masked(n, mask_ratio))


class Strategy(NamedTuple):
    """A strategy that any caller can use without knowing which it is.

    `noise = strategy.draw(batch_size, grid, generator=...)` for the global batch, the same on every rank; then each
    rank calls `strategy(noise[its rows].to(device), mask_ratio, grid=..., part_map=..., attention=..., curriculum_weight=...)`
    with what it has for those rows; `strategy.evidence` names what the strategy looks at.
    """

    noise_shape: Callable[[int, int], tuple[int, ...]]  # (h, w) -> shape of one sample's noise
    core: Callable[..., Tensor]
    evidence: tuple[str, ...]

    def draw(self, b: int, grid: tuple[int, int], *, generator: torch.Generator) -> Noise:
        return _uniform((b, *self.noise_shape(*grid)), generator)

    def __call__(self, noise: Noise, mask_ratio: Number, **evidence: object) -> Mask:
        return self.core(noise, mask_ratio, **{name: evidence[name] for name in self.evidence})


STRATEGIES = {
    "random": Strategy(lambda h, w: (h * w,), random_core, ()),
    "block": Strategy(lambda h, w: (NUM_BLOCKS + 1, 3), block_core, ("grid",)),
    "green_noise": Strategy(lambda h, w: (h, w), green_noise_core, ()),
    "attention": Strategy(lambda h, w: (h * w,), attention_core, ("attention",)),
    "semantic": Strategy(lambda h, w: (2 * h * w + NUM_LABELS,), semantic_core, ("part_map", "curriculum_weight")),
}


def curriculum_weight(progress: Number, *, start: Number, end: Number, power: Number) -> float:
    """The curriculum's value, from `start` to `end`, at `progress` = step / (steps - 1) of the whole run."""
    if not (0 <= start <= 1 and 0 <= end <= 1 and power > 0):
        given = f"curriculum_weight is {{start: {start}, end: {end}, power: {power}}}"
        raise ValueError(f"{given}; expected start and end from 0 to 1, power above 0")
    assert 0 <= progress <= 1, progress
    return float(start + (end - start) * progress**power)


def split_indices(
    mask: Mask, num_masked: int
) -> tuple[Integer[Tensor, "b k"], Integer[Tensor, "b m"], Integer[Tensor, "b n"]]:
    """ids_keep and ids_masked, each ascending, and ids_restore, which sorts their concatenation back into place."""
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    ids_keep, ids_masked = order.split([mask.shape[1] - num_masked, num_masked], dim=1)
    return ids_keep, ids_masked, order.argsort(dim=1)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Noise:
    return torch.rand(shape, generator=generator, device=generator.device)


def _open(noise: Noise) -> Float[Tensor, "b ..."]:
    """Noise in [0, 1) comes in steps of 2^-24; the middle of each step is inside (0, 1), where logs are finite."""
    return noise.double() + 2**-25


def _top(priority: Num[Tensor, "b n"], count: int) -> Mask:
    """True at the `count` highest priorities of every sample; of equals, the first."""
    order = priority.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(priority, dtype=torch.bool).scatter(1, order[:, :count], True)
