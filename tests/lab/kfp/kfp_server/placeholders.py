"""What the real server makes of a component's command line: the executor input, and the placeholders that it fills.

It does so in two steps, and so does this. The driver fills input parameters and decides IfPresent, in arguments that name no
output; the launcher fills the rest, in one go over the whole argument, `{{$}}` first. What it does not know, it leaves alone
(`{{$.json_escape...}}`, names of the run outside of inputs, Concat).
"""

from __future__ import annotations

import json
import re
from typing import Any

from .values import dump, normal, text

Json = dict[str, Any]

_INPUT = re.compile(r"\{\{\$\.inputs\.parameters\['(.+?)'\]\}\}")
_SCHEMES = {"gs://": "/gcs/", "minio://": "/minio/", "s3://": "/s3/"}


def local_path(uri: str) -> str | None:
    """Where a container finds an artifact; None for stores that are not mounted."""
    for scheme, folder in _SCHEMES.items():
        if uri.startswith(scheme):
            return folder + uri.removeprefix(scheme)
    return None


def artifact_path(artifact: Json) -> str | None:
    """The same of an artifact that may name a path of its own."""
    return artifact.get("customPath") or local_path(artifact.get("uri", ""))


def executor_input(inputs: Json, outputs: Json) -> Json:
    """What `{{$}}` stands for, without what is empty. `inputs` and `outputs` are {"parameters": ..., "artifacts": ...}."""
    given = {
        "parameterValues": normal(inputs["parameters"]),
        "artifacts": {name: {"artifacts": listed} for name, listed in inputs["artifacts"].items()},
    }
    wanted = {
        "parameters": {name: {"outputFile": file} for name, file in outputs["parameters"].items()},
        "artifacts": {name: {"artifacts": [artifact]} for name, artifact in outputs["artifacts"].items()},
        "outputFile": outputs["file"],
    }
    return {"inputs": _without_empty(given), "outputs": _without_empty(wanted)}


def resolve(arguments: list[str], inputs: Json, defaults: Json, outputs: Json) -> list[str]:
    """A command line with everything filled in. Raises ValueError for what cannot be.

    `defaults` are those of the component, which only the launcher knows. The result is for a pod: Kubernetes reads $(NAME) in
    what the driver wrote, but not in what the launcher adds.
    """
    complete = {**inputs, "parameters": {**defaults, **inputs["parameters"]}}
    names = {"{{$}}": dump(executor_input(complete, outputs)), **_launcher_names(complete, outputs)}
    # What is filled in may hold further names.
    values = {name: _replaced(value, names) for name, value in names.items()}
    escaped = {name: value.replace("$", "$$") for name, value in values.items()}
    return [
        _replaced(argument, escaped) for argument in _driver(arguments, inputs["parameters"], complete["parameters"])
    ]


def parameter(template: str, values: Json) -> str:
    """A setting of the container that may be a placeholder as a whole: image, resources."""
    match = _INPUT.search(template)
    if not match:
        return template
    if match[1] not in values:
        raise ValueError(f"there is no input parameter {match[1]!r} for {template!r}")
    return text(values[match[1]])


def _driver(arguments: list[str], given: Json, values: Json) -> list[str]:
    resolved: list[str] = []
    for argument in arguments:
        if "$.outputs" in argument:
            resolved.append(argument)
        elif argument.strip().startswith('{"IfPresent":'):
            clause = json.loads(argument)["IfPresent"]
            present = given.get(clause.get("InputName")) is not None
            branch = clause.get("Then") if present else clause.get("Else")
            listed = branch if isinstance(branch, list) else [] if branch is None else [branch]
            if not all(isinstance(item, str) for item in listed):
                raise ValueError(f"IfPresent of {clause.get('InputName')!r} holds more than text: {branch!r}")
            resolved += [_filled(item, values) for item in listed]
        else:
            resolved.append(_filled(argument, values))
    return resolved


def _filled(argument: str, values: Json) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ValueError(f"parameter {match[1]!r} not found in executor input")
        return text(values[match[1]])

    return _INPUT.sub(value, argument)


def _launcher_names(inputs: Json, outputs: Json) -> dict[str, str]:
    names: dict[str, str] = {}
    for name, listed in inputs["artifacts"].items():
        if listed:
            names[f"{{{{$.inputs.artifacts['{name}'].uri}}}}"] = listed[0]["uri"]
            if path := artifact_path(listed[0]):
                names[f"{{{{$.inputs.artifacts['{name}'].path}}}}"] = path
    for name, artifact in outputs["artifacts"].items():
        names[f"{{{{$.outputs.artifacts['{name}'].uri}}}}"] = artifact["uri"]
        names[f"{{{{$.outputs.artifacts['{name}'].path}}}}"] = str(artifact_path(artifact))
    # Values of parameters may hold placeholders of the pipeline's own channels: those last.
    for name in sorted(inputs["parameters"], key=lambda name: (name.startswith("pipelinechannel--"), name)):
        names[f"{{{{$.inputs.parameters['{name}']}}}}"] = text(inputs["parameters"][name])
    for name, file in outputs["parameters"].items():
        names[f"{{{{$.outputs.parameters['{name}'].output_file}}}}"] = file
    return names


def _replaced(text: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        text = text.replace(name, value)
    return text


def _without_empty(message: Json) -> Json:
    return {name: value for name, value in message.items() if value != {}}
