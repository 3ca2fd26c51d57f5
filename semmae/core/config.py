"""The typed loader of params.yaml: unknown, missing and ill-typed keys fail by name.

A stage describes its section as a frozen pydantic dataclass without defaults (a default in Python is a parameter
that DVC cannot see) and calls `load_config(PretrainConfig, "pretrain")`. A field's type bounds its value: pydantic's `PositiveInt`
and the like, or one of those below. YAML 1.2 is read as DVC reads it: `1e-3` is a float, `no` is a string.
"""

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError

from semmae.core.renamed_keys import EVALUATIONS, find_renamed

STRICT = ConfigDict(extra="forbid", strict=True)  # `@dataclass(frozen=True, config=STRICT)` from pydantic.dataclasses
PARAMS = Path("params.yaml")
INHERITED: dict[tuple[str, ...], tuple[str, ...]] = {  # a section, and the section that it takes missing keys from
    ("teacher", "mae", "recipe"): ("mae_recipe",),
    ("pretrain", "recipe"): ("mae_recipe",),
    **{(stage, "datasets"): ("evaluations", stage) for stage in EVALUATIONS},
}

T = TypeVar("T")


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the first number must not exceed the second")
    return pair


Share = Annotated[float, Field(gt=0, lt=1)]  # of a whole: neither nothing nor all of it
Portion = Annotated[float, Field(gt=0, le=1)]  # some of it, or all
UpTo1 = Annotated[float, Field(ge=0, le=1)]
Below1 = Annotated[float, Field(ge=0, lt=1)]
Betas = tuple[Below1, Below1]  # of AdamW
Range = Annotated[tuple[T, T], AfterValidator(_ordered)]  # from the smallest to the largest, `Range[Share]`


def load_config(schema: type[T], *path: str, file: Path = PARAMS) -> T:
    """Return the section of `file` under the keys `path` as an instance of `schema`.

    A section inherits the keys that it lacks, see `INHERITED`.

    Raises:
        ValueError: One line per mistake: the key in full, the given value, the allowed values, the remedy.
    """
    params = read_yaml(file)
    if renamed := list(find_renamed(params)):
        raise ValueError("\n".join(f"{file}: {line}" for line in renamed))
    section: Any = inherit(params)
    for depth, key in enumerate(path):
        if not isinstance(section, dict) or key not in section:
            above = ".".join(path[:depth]) or "the file"
            known = ", ".join(section) if isinstance(section, dict) and section else "nothing"
            raise ValueError(f"{file}: no '{key}' in {above}; it has {known}")
        section = section[key]
    try:
        # JSON mode: strict about types, yet a YAML list may fill a tuple.
        return TypeAdapter(schema).validate_json(json.dumps(section))
    except ValidationError as error:
        lines = [_sentence(_written_key((*path, *mistake["loc"]), params), mistake) for mistake in error.errors()]
        raise ValueError("\n".join(f"{file}: {line}" for line in lines)) from None


def inherit(params: dict[str, Any]) -> dict[str, Any]:
    """Return `params` with every section of `INHERITED` completed from the section that it inherits from."""
    params = copy.deepcopy(params)
    for path, source in INHERITED.items():
        shared, parent = _lookup(params, source), _lookup(params, path[:-1])
        if isinstance(shared, dict) and isinstance(parent, dict):
            parent[path[-1]] = with_overrides(shared, parent.get(path[-1], {}))
    return params


def read_yaml(file: Path = PARAMS) -> dict[str, Any]:
    """The whole of `file` as plain dicts, lists and scalars; a duplicate key or a syntax error is a ValueError."""
    if not file.exists():
        raise ValueError(f"{file} does not exist in {Path.cwd()}; run from the project's root")
    try:
        return YAML(typ="safe", pure=True).load(file) or {}
    except DuplicateKeyError as error:
        raise ValueError(f"{file}: {error.problem} {error.problem_mark}") from None
    except MarkedYAMLError as error:
        raise ValueError(f"{file} is not YAML: {error.problem} {error.problem_mark}") from None


def with_overrides(defaults: T, overrides: Any) -> T:
    """Return `defaults`, a dataclass or a mapping, with the values of `overrides` in place of its own.

    Args:
        overrides: A dataclass, whose fields that are None override nothing, or a mapping, whose values all override.
            For a field that is itself a dataclass or a mapping, a value may be overrides of that field.
    """
    if isinstance(defaults, Mapping):
        changed = dict(defaults)
        for name, value in overrides.items():
            is_partial = isinstance(value, Mapping) and isinstance(changed.get(name), Mapping)
            changed[name] = with_overrides(changed[name], value) if is_partial else value
        return changed  # type: ignore[return-value]
    given = overrides if isinstance(overrides, Mapping) else {k: v for k, v in vars(overrides).items() if v is not None}
    changes = {}
    for name, value in given.items():
        default = getattr(defaults, name)
        partial = isinstance(value, Mapping) or (dataclasses.is_dataclass(value) and type(value) is not type(default))
        changes[name] = with_overrides(default, value) if partial and dataclasses.is_dataclass(default) else value
    return dataclasses.replace(defaults, **changes)  # type: ignore[type-var]


def _lookup(params: Any, path: tuple[str, ...]) -> Any:
    """Return the value under the keys `path`, or None."""
    for key in path:
        params = params.get(key) if isinstance(params, dict) else None
    return params


def _written_key(path: tuple[str | int, ...], params: dict[str, Any]) -> str:
    """Return the key to correct in the file: an inherited value stands in the section that it comes from."""
    for heir, source in INHERITED.items():
        depth = len(heir)
        if path[:depth] == heir and len(path) > depth and path[depth] not in (_lookup(params, heir) or {}):
            path = (*source, *path[depth:])
    return ".".join(map(str, path))


def _sentence(key: str, mistake: Any) -> str:
    """Describe one mistake: the key, the given value, the allowed values."""
    match mistake["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            return f"unknown key {key}; remove it or correct its spelling"
        case "missing" | "missing_argument":
            return f"missing key {key}; add it"
        case "literal_error":
            return f"{key} is {mistake['input']!r}; expected one of {mistake['ctx']['expected']}"
        case _:
            return f"{key} is {mistake['input']!r}; {mistake['msg'].removeprefix('Value error, ')}"
