"""Training on small images first: fewer patches a step while an encoder has most to learn (DailyMAE, Wu et al. 2024;
Touvron et al. 2019 for classifiers).

The part map follows by itself, since a crop takes its labels from the whole image's map at whatever grid it has;
positions are resampled from those of the full size.
"""

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from semmae.core.config import STRICT, Portion

MAX_SIZES = (
    8  # sizes: as many as torch.compile makes of one function before it gives up (torch._dynamo's recompile_limit)
)


@dataclass(frozen=True, config=STRICT)
class ResolutionConfig:
    """Images of `start` pixels at first, larger by `step` until they are full at the share `until` of the epochs."""

    start: PositiveInt
    step: PositiveInt
    until: Portion

    def sizes(self, img_size: int) -> list[int]:
        """Every size on the way to the full one; ValueError if the steps do not lead there, or are too many."""
        if self.start >= img_size or (img_size - self.start) % self.step:
            raise ValueError(
                f"resolution goes from {self.start} pixels in steps of {self.step}, which do not lead to img_size, "
                f"{img_size}; choose a smaller start, and a step that divides what is between"
            )
        sizes = list(range(self.start, img_size + 1, self.step))
        if len(sizes) > MAX_SIZES:
            raise ValueError(
                f"resolution goes from {self.start} to {img_size} pixels in {len(sizes)} sizes; {MAX_SIZES} are allowed, as "
                "many as torch.compile compiles; choose a larger step"
            )
        return sizes


def epoch_sizes(resolution: ResolutionConfig | None, *, img_size: int, epochs: int, patch_size: int) -> tuple[int, ...]:
    """The pixels of a side in every epoch: smaller sizes share the epochs before `until` evenly, the rest has
    `img_size`.

    The last epoch is always full: what is measured and kept is the encoder for `img_size`. ValueError for sizes that
    are no whole number of patches.
    """
    if resolution is None:
        return (img_size,) * epochs
    *smaller, full = resolution.sizes(img_size)
    if broken := [size for size in smaller if size % patch_size]:
        raise ValueError(
            f"resolution has images of {broken[0]} pixels; start and step must be multiples of patch_size, {patch_size}"
        )
    each = resolution.until * epochs / len(smaller)
    sizes = [[*smaller, full][min(int(epoch / each + 1e-9), len(smaller))] for epoch in range(epochs)]
    return (*sizes[:-1], full)
