"""Messages for mistakes in params.yaml: the key, the given value, the allowed values, the remedy."""

import dataclasses
import difflib
import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

MAX_VALUE = 100  # characters of a value that a message repeats


def describe_mistake(key: str, mistake: Any, schema: Any) -> str:
    """Describe one mistake in one line.

    Args:
        key: The full key in the file, for example `pretrain.recipe.epochs`.
        mistake: One of the errors of pydantic's `ValidationError`.
        schema: The type that pydantic has validated against. Its fields are the known keys.
    """
    match mistake["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            *section, name = mistake["loc"]
            return f"unknown key {key}; {_suggest(str(name), _known_keys(schema, section))}"
        case "missing" | "missing_argument":
            return f"missing key {key}; add it"
        case "literal_error":
            return f"{key} is {mistake['input']!r}; expected one of {mistake['ctx']['expected']}"
        case "value_error" if len(str(mistake["input"])) > MAX_VALUE:
            return f"{key}: {mistake['msg'].removeprefix('Value error, ')}"
        case _:
            return f"{key} is {mistake['input']!r}; {mistake['msg'].removeprefix('Value error, ')}"


def _suggest(name: str, known: Sequence[str]) -> str:
    """Return the remedy for an unknown key: the closest known key, or all of them."""
    if matches := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {matches[0]}?"
    return f"expected one of {', '.join(known)}" if known else "remove it"


def _known_keys(schema: Any, section: Sequence[str | int]) -> list[str]:
    """Return the keys that `schema` allows in a section.

    Args:
        section: Path of the section: keys and indices of lists. For a union, it has the tag or the class name of the
            member that pydantic validated against.
    """
    candidates = _alternatives(schema)
    for part in section:
        candidates = [type_ for candidate in candidates for type_ in _descend(candidate, part)] or candidates
    sections = filter(dataclasses.is_dataclass, candidates)
    return [field.name for section_type in sections for field in dataclasses.fields(section_type)]


def _descend(candidate: Any, part: str | int) -> list[Any]:
    """Return the types of the value at `part` in a value of type `candidate`."""
    if dataclasses.is_dataclass(candidate):
        if part in {field.name for field in dataclasses.fields(candidate)}:
            return _alternatives(get_type_hints(candidate, include_extras=True)[str(part)])
        return [candidate] if _has_tag(candidate, part) else []
    if get_origin(candidate) in (dict, list, tuple):
        return _alternatives(get_args(candidate)[-1 if get_origin(candidate) is dict else 0])
    return []


def _alternatives(annotation: Any) -> list[Any]:
    """Return the members of a union, or the type itself, without the metadata of `Annotated`."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [type_ for member in get_args(annotation) for type_ in _alternatives(member)]
    return [annotation]


def _has_tag(candidate: Any, part: str | int) -> bool:
    """Return whether `part` names this member of a union: its class, or the only value of its field `kind`."""
    kind = get_type_hints(candidate).get("kind")
    return part == candidate.__name__ or (get_origin(kind) is Literal and part in get_args(kind))
