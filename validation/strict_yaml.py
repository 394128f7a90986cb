"""Reading a YAML file into a record, strictly: every refusal is one line with file, line, field and fix."""

import reprlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from validation.errors import InputError, unknown_name
from validation.record import Record

AnyRecord = TypeVar("AnyRecord", bound=Record)
Place = tuple[str | int, ...]  # the keys and indices that lead to a value
Lines = dict[Place, int]


def load_record(
    path: Path,
    model: type[AnyRecord],
    problems: Callable[[AnyRecord], Iterable[tuple[Place, str]]] = lambda _: (),
) -> AnyRecord:
    """The record that the YAML file at `path` describes.

    `problems` names what is wrong with a record that is well formed: the places, and each time what to do.
    Raises InputError for a missing or malformed file, an unknown or repeated key, a refused value, a problem.
    """
    content, lines = _read(path)
    try:
        record = model.model_validate(content)
    except ValidationError as error:
        raise InputError(_first_problem(path, error, lines, model)) from None
    for place, words in problems(record):
        raise InputError(f"{path}:{lines[place]}: {_dotted(place)}: {words}")
    return record


def _read(path: Path) -> tuple[Any, Lines]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"{path}: cannot be read: {reason}") from None
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        lines: Lines = {(): 1}
        return (_plain(root, (), lines, loader, path) if root else None), lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}:{line}: not readable as YAML: {error.problem}") from None
    except RecursionError:
        raise InputError(f"{path}: not readable as YAML: an alias refers to itself") from None
    except InputError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()


def _plain(node: yaml.Node, place: Place, lines: Lines, loader: yaml.SafeLoader, path: Path) -> Any:
    """The node as dicts, lists and scalars, noting in `lines` where each value stands."""
    if isinstance(node, yaml.MappingNode):
        return _plain_mapping(node, place, lines, loader, path)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*place, index)] = item.start_mark.line + 1
        return [_plain(item, (*place, index), lines, loader, path) for index, item in enumerate(node.value)]
    return loader.construct_object(node)


def _plain_mapping(
    node: yaml.MappingNode, place: Place, lines: Lines, loader: yaml.SafeLoader, path: Path
) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in mapping:
            raise InputError(f"{path}:{line}: {_dotted((*place, key))}: given twice, keep one")
        lines[(*place, key)] = line
        mapping[key] = _plain(value_node, (*place, key), lines, loader, path)
    return mapping


def _first_problem(path: Path, error: ValidationError, lines: Lines, model: type[Record]) -> str:
    problems = error.errors(include_url=False)
    misspelt = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    problem = (misspelt or problems)[0]  # a misspelt key is also a missing one: say what was written
    place: Place = problem["loc"]
    known = place
    while known not in lines:
        known = known[:-1]
    field = _dotted(place) or "the file"
    return f"{path}:{lines[known]}: {field}: {_fix(problem, model)}"


def _fix(problem: Any, model: type[Record]) -> str:
    if problem["type"] == "extra_forbidden":
        return unknown_name("key", str(problem["loc"][-1]), _all_keys(model))
    if problem["type"] == "missing":
        return "missing, it has to be given"
    if problem["type"] == "too_short":
        return "empty, name at least one"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{message}, not {reprlib.repr(problem['input'])}"


def _all_keys(model: type[Record]) -> list[str]:
    """Every key that is known anywhere in the record."""
    schema = model.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return list(dict.fromkeys(key for part in parts for key in part.get("properties", {})))


def _dotted(place: Place) -> str:
    return ".".join(str(step) for step in place)
