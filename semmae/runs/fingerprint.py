"""The identity of a run. A run resumes from a checkpoint only if the checkpoint has the same identity.

The identity holds the stage, its parameters, the digests of its inputs and the digest of its source code. Four things
do not change the result, and are left out: the number of worker processes, the time between checkpoints, the code of
the console output and the version number.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from semmae.core.digests import file_digest, json_digest

PARAMS_WITHOUT_EFFECT = ("workers", "checkpoint_minutes")


def run_identity(stage: str, params: Any, inputs: list[str]) -> dict[str, Any]:
    """Return the identity of a run. Its digest is the fingerprint of the run.

    Args:
        params: The parameters of the stage, a dataclass.
        inputs: Digests of the files that the stage reads.
    """
    return {
        "stage": stage,
        "params": _params_with_effect(dataclasses.asdict(params)),
        "inputs": inputs,
        "source": source_digest(),
    }


def source_digest() -> str:
    """Return the digest of the project's source files that this process has imported."""
    return json_digest(sorted(map(file_digest, source_files())))


def source_files() -> set[Path]:
    """Return the imported source files of the project that can change a result, including the running stage."""
    modules = [module for name, module in sys.modules.items() if name == "__main__" or _can_change_results(name)]
    return {Path(file) for module in modules if (file := getattr(module, "__file__", None))}


def _can_change_results(module: str) -> bool:
    """Return whether a module of the project can change results: not the version, nor the console output."""
    return module.startswith(("semmae.", "stages")) and not f"{module}.".startswith("semmae.console.")


def artifact_params(section: Any) -> dict[str, Any]:
    """Return the parameters of a stage that can change its result, for the JSON of its artifact.

    Args:
        section: The section of the stage, a dataclass with a field `compute`.
    """
    params = _params_with_effect(dataclasses.asdict(section))
    del params["compute"]
    return params | {"precision": section.compute.precision}


def _params_with_effect(params: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _params_with_effect(value) if isinstance(value, dict) else value
        for name, value in params.items()
        if name not in PARAMS_WITHOUT_EFFECT
    }
