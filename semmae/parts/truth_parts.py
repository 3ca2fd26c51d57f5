"""The part method `truth`: the true parts, from the masks of the dataset.

It is an oracle for experiments: it shows what a pretrained encoder would gain from part maps without an error.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from semmae.data.dataset import Reader
from semmae.data.decoding import IGNORE
from semmae.data.patch_masks import WholeView, majority_labels
from semmae.models.teacher import Tokens
from semmae.parts.part_method import PartMethod


class TruthParts(PartMethod):
    """The majority label of the mask in each patch. Mask label 0 is the background, and mask label k is part k - 1.

    A patch without a labeled pixel is background, so that mask strategies treat it as the rest of the image outside of
    the parts.

    Args:
        config: The keys of `PartMethod`, and `mask_names`, the names of the mask labels of the dataset.
    """

    def assign(self, tokens: Tokens, counts: Integer[Tensor, "b n g"] | None = None) -> Float[Tensor, "b p n"]:
        """Return share 1 for the true label of each patch."""
        assert counts is not None, "load images with TruthParts.view"
        true = majority_labels(counts.numpy())
        labels = np.where((true == 0) | (true == IGNORE), self.num_parts, true - 1)
        shares = F.one_hot(torch.from_numpy(labels), self.num_labels)
        return shares.transpose(1, 2).float().to(tokens.patch.device)

    def check_dataset(self, reader: Reader) -> None:
        """Raise ValueError if the images of a reader lack the masks that the method was made for."""
        check_masks(reader)
        if reader.mask_names != self.config["mask_names"]:
            raise ValueError(
                f"parts.method is truth: {reader.dataset} has the mask names {', '.join(reader.mask_names)}; expected "
                f"{', '.join(self.config['mask_names'])}. Set parts.dataset to {reader.dataset.name}, or choose "
                "another parts.method"
            )

    def view(self, reader: Reader) -> WholeView:
        """Return the view that loads an image and the counts of its mask; see `PartMethod.view`."""
        self.check_dataset(reader)
        return WholeView(self.config["img_size"], self.grid, num_classes=len(self.config["mask_names"]))


def check_masks(reader: Reader) -> None:
    """Raise ValueError unless every image of a reader has a mask of foreground or of parts."""
    if reader.mask_kind not in ("foreground", "parts"):
        raise ValueError(
            f"parts.method is truth: the kind of the masks of {reader.dataset} is {reader.mask_kind}; expected "
            "foreground or parts. Choose another parts.method, or another dataset"
        )
    if missing := int((~reader.has_mask).sum()):
        raise ValueError(
            f"parts.method is truth: {missing} of {len(reader)} images of {reader.dataset} have no mask; expected one "
            "for each image. Choose another parts.method, or another dataset"
        )
