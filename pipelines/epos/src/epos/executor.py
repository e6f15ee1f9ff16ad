"""What Kubeflow Pipelines tells a step and what the step answers, without KFP's SDK in the image.

A step is a function. KFP starts it with its "executor input", a JSON text that names the values of parameters and where
artifacts lie on this machine; the step leaves an "executor output" file with its output parameters and what is to be
known of its artifacts (as kfp.dsl.executor of KFP 2.17 does). The function's annotations say what it wants:

    Input, Output    an artifact
    str, int, float  a parameter
    a dataclass      parameters with the names of its fields
    -> a NamedTuple  output parameters
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from epos.checkpoint import write_atomic
from epos.errors import UsageError

# Where KFP's launcher keeps artifacts, by the scheme of their address.
_FOLDERS = {"minio": "/minio", "s3": "/s3", "gs": "/gcs"}


@dataclass
class Artifact:
    """A file or folder that steps hand on.

    Attributes:
        name, uri: KFP's.
        path: where it lies here.
        metadata: facts about it, which KFP keeps and shows.
    """

    name: str
    uri: str
    path: Path
    metadata: dict[str, Any] = field(default_factory=dict)


class Input(Artifact):
    """An artifact that another step made."""


class Output(Artifact):
    """An artifact that this step makes: the folder of `path` is there, the path itself is not."""


class Interface(NamedTuple):
    """What a step takes and gives, by name."""

    inputs: set[str]
    outputs: set[str]
    parameters: dict[str, type]
    results: dict[str, type]


def interface(step: Callable[..., Any]) -> Interface:
    """Reads a step's annotations."""
    found = Interface(set(), set(), {}, {})
    for name, kind in get_type_hints(step).items():
        if name == "return":
            found.results.update(get_type_hints(kind) if kind is not type(None) else {})
        elif kind is Input:
            found.inputs.add(name)
        elif kind is Output:
            found.outputs.add(name)
        elif dataclasses.is_dataclass(kind):
            hints = get_type_hints(kind)
            found.parameters.update({f.name: hints[f.name] for f in dataclasses.fields(kind)})
        else:
            found.parameters[name] = kind
    return found


def _path(uri: str, where: str) -> Path:
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return Path(uri)
    if scheme not in _FOLDERS:
        raise UsageError(f"{where}.uri: {uri!r}: the scheme is none of {', '.join(_FOLDERS)}")
    return Path(_FOLDERS[scheme]) / rest


def _artifact(kind: type[Artifact], listed: Any, where: str) -> Artifact:
    try:
        first = listed["artifacts"][0]
        uri = str(first["uri"])
    except (KeyError, IndexError, TypeError) as error:
        raise UsageError(f"{where}: missing") from error
    return kind(str(first.get("name", "")), uri, _path(uri, where), dict(first.get("metadata") or {}))


def _value(kind: type, value: Any, where: str) -> Any:
    # JSON, and KFP on the way, know but one kind of number.
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer():
        return int(value)
    if kind is str and isinstance(value, str):
        return value
    raise UsageError(f"{where}: expected {kind.__name__}, found {value!r}")


def run(step: Callable[..., Any], text: str) -> None:
    """Runs a step.

    Args:
        step: a function with the annotations that this module's text lists.
        text: KFP's executor input.

    Raises:
        UsageError: the input does not fit the step.
        EposError: the step failed.
    """
    where = "--executor-input"
    try:
        given = json.loads(text)
        inputs, outputs = given.get("inputs") or {}, given["outputs"]
        answer = Path(outputs["outputFile"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{where}: is not KFP's executor input: {error!r}") from error

    values: Mapping[str, Any] = inputs.get("parameterValues") or {}

    def parameter(name: str, kind: type) -> Any:
        place = f"{where}: inputs.parameterValues.{name}"
        if name not in values:
            raise UsageError(f"{place}: missing")
        return _value(kind, values[name], place)

    arguments: dict[str, Any] = {}
    made: dict[str, Artifact] = {}
    for name, kind in get_type_hints(step).items():
        if name == "return":
            continue
        if kind is Input:
            listed = (inputs.get("artifacts") or {}).get(name)
            arguments[name] = _artifact(Input, listed, f"{where}: inputs.artifacts.{name}")
        elif kind is Output:
            listed = (outputs.get("artifacts") or {}).get(name)
            made[name] = arguments[name] = _artifact(Output, listed, f"{where}: outputs.artifacts.{name}")
            made[name].path.parent.mkdir(parents=True, exist_ok=True)
        elif dataclasses.is_dataclass(kind):
            hints = get_type_hints(kind)
            arguments[name] = kind(**{f.name: parameter(f.name, hints[f.name]) for f in dataclasses.fields(kind)})
        else:
            arguments[name] = parameter(name, kind)
    result = step(**arguments)
    value: dict[str, Any] = {}
    if result is not None:
        value["parameterValues"] = result._asdict()
    if made:
        value["artifacts"] = {
            name: {"artifacts": [{"name": a.name, "uri": a.uri, "metadata": a.metadata}]} for name, a in made.items()
        }
    write_atomic(answer, json.dumps(value).encode())
