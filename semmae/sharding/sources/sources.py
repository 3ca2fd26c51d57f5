"""All kinds of sources. `source.py` defines the interface that a kind implements."""

from typing import Annotated

from pydantic import Field

from semmae.sharding.sources.creatures import Creatures
from semmae.sharding.sources.folder import FolderMasks, Tree
from semmae.sharding.sources.huggingface import HuggingFace
from semmae.sharding.sources.torchvision import TorchVision
from semmae.sharding.sources.webdataset import WebDataset

__all__ = ["AnySource", "Creatures", "FolderMasks", "HuggingFace", "TorchVision", "Tree", "WebDataset"]

# the parameters of a source in params.yaml; `kind` selects the class
AnySource = Annotated[Creatures | Tree | WebDataset | TorchVision | HuggingFace, Field(discriminator="kind")]
