"""Read images in the forms that a notebook has: paths, Pillow images, numpy arrays and torch tensors."""

import os
from collections.abc import Iterable
from typing import Protocol, SupportsIndex, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from semmae.data import decoding
from semmae.data.dataset import ImageSequence
from semmae.sharding.sources.source_item import Blob

OneImage: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor


@runtime_checkable
class SizedImages(ImageSequence, Protocol):
    """An `ImageSequence` that knows the sizes of its images, such as a `Reader` or an `ImageFolder`."""

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        """Height and width of the upright image, in pixels."""
        ...


Images: TypeAlias = OneImage | Iterable[OneImage] | SizedImages


class ImageList:
    """Images of any size and form; a `SizedImages`.

    Args:
        images: Each is the path of an image file, a Pillow image, a uint8 array of shape (h, w, 3) or (h, w), or a
            tensor of shape (3, h, w) or (1, h, w), uint8 or with values in [0, 1].

    Raises:
        ValueError: There are no images, a file does not exist, or an array or tensor has another shape or type.
        TypeError: An image has none of these forms.
    """

    def __init__(self, images: list[OneImage]) -> None:
        if not images:
            raise ValueError("no images: the list is empty; expected at least one image")
        self.images = images
        self.keys = [
            os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {number}"
            for number, image in enumerate(images)
        ]
        for key, image in zip(self.keys, images, strict=True):
            _check(key, image)

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: SupportsIndex, *, at_least: tuple[int, int] = (0, 0)) -> UInt8[np.ndarray, "h w 3"]:
        """Decode an image, upright, in RGB; see `ImageSequence.image`.

        Raises:
            ValueError: A file cannot be read or decoded. The message names the file.
        """
        image = self.images[index]
        try:
            if isinstance(image, str | os.PathLike):
                return decoding.to_rgb(Blob.of(os.fspath(image)).read(), at_least=at_least)
            if isinstance(image, Image.Image):
                return decoding.pillow_to_rgb(image)
        except (ValueError, OSError) as error:
            raise ValueError(f"{self.keys[index]} cannot be read: {error}") from None
        pixels = _channels_last(image) if isinstance(image, torch.Tensor) else image
        height, width = pixels.shape[:2]
        return np.array(np.broadcast_to(pixels.reshape(height, width, -1), (height, width, 3)))

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        """Height and width of the upright image in pixels; of a file, from its header."""
        image = self.images[index]
        if isinstance(image, str | os.PathLike):
            return decoding.read_header(Blob.of(os.fspath(image)).read()).size
        height, width = self.image(index).shape[:2]
        return height, width


def as_images(images: Images) -> SizedImages:
    """Return one image, several images, a batch of shape (b, h, w, 3) or (b, 3, h, w), or a dataset as one sequence."""
    if isinstance(images, SizedImages):  # a Reader or an ImageFolder
        return images
    if isinstance(images, str | os.PathLike | Image.Image):
        return ImageList([images])
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim in (2, 3):
        return ImageList([images])
    if isinstance(images, Iterable):
        return ImageList(list(images))
    raise _unknown("images", images)


def _check(key: str, image: OneImage) -> None:
    """Raise an error unless `image` has one of the forms of `ImageList`."""
    if isinstance(image, str | os.PathLike):
        if os.path.isdir(image):
            raise ValueError(f"{key} is a folder; expected an image file. Pass the paths of its files as a list")
        if not os.path.exists(image):
            raise ValueError(f"{key} does not exist; expected an image file. Check the path and the working folder")
    elif isinstance(image, np.ndarray):
        is_shape = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
        if image.dtype != np.uint8 or not is_shape or not image.size:
            raise ValueError(
                f"{key} is an array of {image.dtype} with shape {image.shape}; expected uint8 with shape (h, w, 3) or "
                "(h, w). Scale values in [0, 1] by 255 and convert them with .astype(numpy.uint8)"
            )
    elif isinstance(image, torch.Tensor):
        is_shape = image.ndim == 3 and image.shape[0] in (1, 3)
        if not (image.dtype == torch.uint8 or image.is_floating_point()) or not is_shape or not image.numel():
            raise ValueError(
                f"{key} is a tensor of {image.dtype} with shape {tuple(image.shape)}; expected uint8 or floating point "
                "with shape (3, h, w) or (1, h, w). Move the channels to the front with .permute(2, 0, 1)"
            )
        low, high = image.amin().item(), image.amax().item()
        if image.is_floating_point() and not 0 <= low <= high <= 1:
            raise ValueError(
                f"{key} is a tensor with values from {low:.4g} to {high:.4g}; expected [0, 1]. Pass the image before "
                "its normalization"
            )
    elif not isinstance(image, Image.Image):
        raise _unknown(key, image)


def _unknown(key: str, image: object) -> TypeError:
    return TypeError(
        f"{key} has the type {type(image).__name__}; expected a path, a Pillow image, a numpy array or a torch tensor"
    )


def _channels_last(image: torch.Tensor) -> np.ndarray:
    """Convert a tensor (c, h, w) to a uint8 array (h, w, c)."""
    image = image.detach().cpu()
    if image.is_floating_point():
        image = (image.float() * 255).round().to(torch.uint8)
    return image.permute(1, 2, 0).numpy()
