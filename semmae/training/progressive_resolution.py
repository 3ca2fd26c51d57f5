"""Training on small images first, which have fewer patches per step.

Used for classifiers by Touvron et al. 2019 and for MAE in DailyMAE (Wu et al. 2024). The encoder's positions are
resampled from the full size. The part maps stay the same, because `PartMaps.crops` samples them on any grid.
"""

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from semmae.core.config import STRICT, PositiveUpTo1

MAX_SIZES = 8  # torch.compile compiles one function for at most 8 shapes (torch._dynamo.config.recompile_limit)


@dataclass(frozen=True, config=STRICT)
class ResolutionConfig:
    """Schedule of image sizes: from `start` pixels in steps of `step` pixels, each for equally many epochs.

    After the share `until` of the epochs, images have the full size.
    """

    start: PositiveInt
    step: PositiveInt
    until: PositiveUpTo1

    def sizes(self, img_size: int) -> list[int]:
        """List all image sizes up to `img_size`, in ascending order.

        Raises:
            ValueError: the steps do not reach `img_size`, or there are more than MAX_SIZES sizes.
        """
        if self.start >= img_size or (img_size - self.start) % self.step:
            raise ValueError(
                f"resolution goes from {self.start} pixels in steps of {self.step}, which do not reach img_size "
                f"{img_size}; choose a smaller start, and a step that divides the difference"
            )
        sizes = list(range(self.start, img_size + 1, self.step))
        if len(sizes) > MAX_SIZES:
            raise ValueError(
                f"resolution goes from {self.start} to {img_size} pixels in {len(sizes)} sizes; expected at most "
                f"{MAX_SIZES}, the limit of torch.compile. Choose a larger step"
            )
        return sizes


def epoch_sizes(resolution: ResolutionConfig | None, *, img_size: int, epochs: int, patch_size: int) -> tuple[int, ...]:
    """Return the side of the images in each epoch, in pixels.

    The last epoch always has the full size, because the encoder is scored and stored for `img_size`.

    Raises:
        ValueError: a size is not a multiple of `patch_size`, or `ResolutionConfig.sizes` rejects the schedule.
    """
    if resolution is None:
        return (img_size,) * epochs
    *smaller, full = resolution.sizes(img_size)
    if invalid := [size for size in smaller if size % patch_size]:
        raise ValueError(
            f"resolution has images of {invalid[0]} pixels; "
            f"start and step must be multiples of patch_size, {patch_size}"
        )
    epochs_per_size = resolution.until * epochs / len(smaller)
    sizes = [
        [*smaller, full][min(int(epoch / epochs_per_size + 1e-9), len(smaller))]  # 1e-9: for float rounding
        for epoch in range(epochs)
    ]
    return (*sizes[:-1], full)
