"""The interface of part methods. A part method assigns each patch of an image a share of every part label."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float, Integer
from torch import Tensor, nn

from semmae.data.dataset import Reader
from semmae.data.transforms import FullImage
from semmae.models.teacher import Tokens


class PartMethod(nn.Module):
    """Base class of part methods.

    Args:
        config: `grid` (rows and columns of patches), `img_size` (side of the teacher's images in pixels), `num_parts`,
            `background` (whether the background has its own label), and the keys of the subclass.

    Attributes:
        background: The label of the background, `num_parts`; None without a background.
        num_labels: Number of labels, background included.
        digest: Digest of the saved method; empty before `load_parts`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config, self.digest = config, ""
        self.grid: tuple[int, int] = tuple(config["grid"])
        self.num_parts: int = config["num_parts"]
        self.background: int | None = config["num_parts"] if config["background"] else None
        self.num_labels = self.num_parts + (self.background is not None)

    def assign(self, tokens: Tokens, counts: Integer[Tensor, "b n g"] | None = None) -> Float[Tensor, "b p n"]:
        """Return the share of every label in each patch (sums to 1). The argmax is the part map.

        Args:
            tokens: The teacher's tokens.
            counts: Pixels of each true label in each patch (`cell_counts`). Only the method `truth` needs them.
        """
        raise TypeError(f"{type(self).__name__} does not assign parts")

    def check_dataset(self, reader: Reader) -> None:
        """Raise ValueError if the method cannot label the images of a dataset."""

    def view(self, reader: Reader) -> Callable[[Reader, int], dict[str, Any]]:
        """Return the view that loads an image as `assign` needs it: `image`, and `counts` if the method needs them.

        Raises:
            ValueError: The method cannot label the images of the dataset.
        """
        self.check_dataset(reader)
        return FullImage(self.config["img_size"], seed=0, flip=0.0)
