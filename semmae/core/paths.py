"""Folders outside of the pipeline's outputs: the user's raw data and the state root."""

import os
from pathlib import Path


def raw_path(path: str) -> Path:
    """Resolve a path that the user names in params.yaml.

    A relative path starts in `data/raw`. In a DVC queue that is the folder of the main repository, which DVC names in
    `DVC_ROOT`. `..` is resolved by name, so a path may leave `data/raw` even if that folder does not exist.
    """
    return Path(os.path.normpath(Path(os.environ.get("DVC_ROOT", "")) / "data/raw" / path))


def state_root() -> Path:
    """Return the folder of checkpoints, the part-map store and locks; create it if it is missing.

    DVC deletes the outputs of a stage before the stage runs, so resumable state lives outside of them: in
    `$SEMMAE_STATE`, by default in the user's cache folder.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(os.environ.get("SEMMAE_STATE") or Path(cache) / "semmae").absolute()
    root.mkdir(parents=True, exist_ok=True)
    return root
