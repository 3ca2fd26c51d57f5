"""Encoders kept for later: as the teacher of another run, whatever becomes of the run that they come from.

`promote` copies an encoder from the workspace, or from any experiment or commit that DVC has cached, to
data/encoders/<sha256 of its weights>. Git and DVC leave that folder alone, so a queued experiment finds it in the main
repository as it finds data/raw.
"""

import shutil
import tempfile
from pathlib import Path

from semmae import artifact

FILES = ("encoder.safetensors", "encoder.json")


def promote(pretrained: Path, encoders: Path, *, rev: str | None = None) -> Path:
    """Copy the encoder in `pretrained` of `rev` (None: the workspace) into `encoders`; the file of its weights.

    An encoder that is there already is left as it is. Raises ValueError where there is no encoder, or a damaged one.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = pretrained if rev is None else _fetched(pretrained, rev, Path(temporary))
        _, config = artifact.read_model(folder, "encoder")
        kept = encoders / config["sha256"]
        if not kept.exists():
            with artifact.replacing(kept) as copy:
                copy.mkdir()
                for name in FILES:
                    shutil.copyfile(folder / name, copy / name)
    return kept / FILES[0]


def _fetched(pretrained: Path, rev: str, to: Path) -> Path:
    """The encoder as it was in `rev`, an experiment's name or what Git calls a commit, out of DVC's cache."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    try:
        files = DVCFileSystem(".", rev=rev)
        for name in FILES:
            files.get_file(str(pretrained / name), str(to / name))
    except (DvcException, FileNotFoundError) as error:
        raise ValueError(f"{pretrained} of {rev} is not to be had: {error}; dvc exp show lists what there is") from None
    return to
