"""The typed loader of params.yaml.

A stage describes its section as a frozen pydantic dataclass and loads it by `load_config(PretrainConfig, "pretrain")`.
The dataclass has no defaults, because DVC does not track a default in Python. Types such as pydantic's `PositiveInt`
or `UpTo1` of this module limit the range of a field. Unknown keys, missing keys and wrong types are errors.

YAML is read as DVC reads it, in version 1.2: `1e-3` is a float, `no` is a string.
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

from semmae.core.config_errors import describe_mistake
from semmae.core.renamed_keys import EVALUATIONS, find_renamed

STRICT = ConfigDict(extra="forbid", strict=True)  # `@dataclass(frozen=True, config=STRICT)` from pydantic.dataclasses
PARAMS = Path("params.yaml")
INHERITED: dict[tuple[str, ...], tuple[str, ...]] = {  # section: the section that supplies its missing keys
    ("teacher", "mae", "recipe"): ("mae_recipe",),
    ("pretrain", "recipe"): ("mae_recipe",),
    **{(stage, "datasets"): ("evaluations", stage) for stage in EVALUATIONS},
}

T = TypeVar("T")


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("the first number must not exceed the second")
    return pair


PositiveBelow1 = Annotated[float, Field(gt=0, lt=1)]  # (0, 1)
PositiveUpTo1 = Annotated[float, Field(gt=0, le=1)]  # (0, 1]
UpTo1 = Annotated[float, Field(ge=0, le=1)]  # [0, 1]
Below1 = Annotated[float, Field(ge=0, lt=1)]  # [0, 1)
Betas = tuple[Below1, Below1]  # of AdamW
Range = Annotated[tuple[T, T], AfterValidator(_ordered)]  # smallest and largest value, for example `Range[UpTo1]`


def load_config(schema: type[T], *path: str, file: Path = PARAMS) -> T:
    """Return the section of `file` under the keys `path` as an instance of `schema`.

    A section inherits the keys that it lacks, see `INHERITED`.

    Raises:
        ValueError: The section has mistakes. The message has one line per mistake, with the key, its value, the allowed
            values and the remedy.
    """
    params = read_yaml(file)
    if renamed := list(find_renamed(params)):
        raise ValueError("\n".join(f"{file}: {line}" for line in renamed))
    section: Any = inherit(params)
    for depth, key in enumerate(path):
        if not isinstance(section, dict) or key not in section:
            if source := INHERITED.get(path[: depth + 1]):
                raise ValueError(f"{file}: missing key {'.'.join(source)}; add it")
            parent = f"section {'.'.join(path[:depth])}" if depth else "file"
            known = ", ".join(section) if isinstance(section, dict) and section else "no keys"
            raise ValueError(f"{file}: missing key {'.'.join(path[: depth + 1])}; the {parent} has {known}")
        section = section[key]
    try:
        # In JSON mode pydantic is strict about types, but accepts a YAML list for a tuple.
        return TypeAdapter(schema).validate_json(json.dumps(section))
    except ValidationError as error:
        lines = [
            describe_mistake(_written_key((*path, *mistake["loc"]), params), mistake, schema)
            for mistake in error.errors()
        ]
        raise ValueError("\n".join(f"{file}: {line}" for line in lines)) from None


def inherit(params: dict[str, Any]) -> dict[str, Any]:
    """Return `params` with every section of `INHERITED` completed from the section that it inherits from."""
    params = copy.deepcopy(params)
    for path, source in INHERITED.items():
        shared, parent = _lookup(params, source), _lookup(params, path[:-1])
        own = _lookup(params, path)
        if isinstance(shared, dict) and isinstance(parent, dict) and (own is None or isinstance(own, dict)):
            parent[path[-1]] = with_overrides(shared, own or {})
    return params


def read_yaml(file: Path = PARAMS) -> dict[str, Any]:
    """Return the content of `file` as dicts, lists and scalars.

    Raises:
        ValueError: The file does not exist, is not YAML, or has a duplicate key.
    """
    if not file.exists():
        raise ValueError(f"{file} does not exist in {Path.cwd()}; run the command in the root folder of the project")
    try:
        return YAML(typ="safe", pure=True).load(file) or {}
    except DuplicateKeyError as error:
        raise ValueError(f"{file}: {error.problem} {error.problem_mark}") from None
    except MarkedYAMLError as error:
        raise ValueError(f"{file} is not YAML: {error.problem} {error.problem_mark}") from None


def with_overrides(defaults: T, overrides: Any) -> T:
    """Return `defaults`, a dataclass or a mapping, with the values of `overrides` in place of its own.

    Args:
        overrides: A mapping, or a dataclass whose None fields override nothing. If a field of `defaults` is itself a
            dataclass or a mapping, its override may hold only some of its fields.
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
    """Return the key to correct in the file, given the path of an error of pydantic.

    For an inherited value, this is the key in the section that supplies the value. For a member of a union, pydantic
    adds a tag to the path. This function drops the tag, because the file has no such key.
    """
    num_known = 0  # leading keys that are known to be in the file, because they come from INHERITED
    for section, source in INHERITED.items():
        keys = path[len(section) :]
        if (*section, *keys) == path and _is_inherited(keys, _lookup(params, section), _lookup(params, source)):
            path, num_known = (*source, *keys), len(source)
    written: list[str | int] = []
    value: Any = params
    for position, part in enumerate(path[:-1]):
        if isinstance(part, int) or position < num_known or part in value:
            written.append(part)
            value = value[part] if isinstance(part, int) or part in value else {}
    return ".".join(map(str, (*written, path[-1])))


def _is_inherited(keys: tuple[str | int, ...], own: Any, shared: Any) -> bool:
    """Return whether `own` lacks the value under `keys`, so that `with_overrides(shared, own)` looks in `shared`."""
    if own is None:
        return True
    for depth, key in enumerate(keys):
        if not isinstance(own, dict):
            return False
        if key not in own:
            return depth == 0 or isinstance(shared, dict)
        own, shared = own[key], shared.get(key) if isinstance(shared, dict) else None
    return False
