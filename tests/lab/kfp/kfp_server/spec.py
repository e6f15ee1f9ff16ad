"""Compiled pipelines as they are uploaded, and the parameters of a run: read, and refused as the real server refuses them."""

from __future__ import annotations

import io
import json
import re
import tarfile
import zipfile
from datetime import UTC, datetime
from typing import Any

import yaml

from .errors import INTERNAL, ApiError, invalid, invalid_spec, trying
from .store import Json

MAX_BYTES = 32 << 20
TOP_LEVEL = {
    "pipelineInfo",
    "deploymentSpec",
    "schemaVersion",
    "sdkVersion",
    "components",
    "root",
    "defaultPipelineRoot",
}
PIPELINE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,127}")
# Types of parameters: what the error says of them, and the Python types of their JSON values.
NUMBER = "double or integer, but the parameter value is not of number value type"
PARAMETER_TYPES: dict[str, tuple[str, tuple[type, ...]]] = {
    "NUMBER_DOUBLE": (NUMBER, (int, float)),
    "NUMBER_INTEGER": (NUMBER, (int, float)),
    "STRING": ("string, but the input parameter is not of string value type", (str,)),
    "BOOLEAN": ("bool, but the input parameter is not of bool value type", (bool,)),
    "LIST": ("list, but the input parameter is not of list value type", (list,)),
    "STRUCT": ("struct, but the input parameter is not of struct value type", (dict,)),
}


class Loader(yaml.CSafeLoader):
    """Reads YAML as JSON: a date stays the string it is."""


Loader.yaml_implicit_resolvers = {
    letter: [each for each in resolvers if each[0] != "tag:yaml.org,2002:timestamp"]
    for letter, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def read_file(name: str, content: bytes) -> bytes:
    """The YAML or JSON in an uploaded file: itself, or `pipeline.yaml` or else the first file of an archive."""
    if len(content) > MAX_BYTES:
        raise invalid(f"File size too large ({len(content)} bytes). Maximum supported size: {MAX_BYTES}")
    if name.endswith((".yaml", ".yml", ".json")):
        return content
    try:
        if content.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                return archive.read(_member(archive.namelist()))
        if content.startswith(b"\x1f\x8b"):
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
                file = archive.extractfile(_member(archive.getnames()))
                return file.read() if file else b""
    except (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError) as error:
        raise invalid(f"Error extracting pipeline from the archive: {error}") from error
    raise invalid("Unexpected pipeline file format. Support .zip, .tar.gz, .json or YAML")


def _member(names: list[str]) -> str:
    name = "pipeline.yaml" if "pipeline.yaml" in names else next(iter(names), "")
    if not name.endswith((".yaml", ".yml")):
        raise invalid(f"Error extracting pipeline from the archive. Expecting a pipeline.yaml file inside. Got: {name}")
    return name


def parse(content: bytes) -> tuple[Json, Json]:
    """The pipeline spec and the platform spec of a compiled pipeline's documents."""
    try:
        documents = [each for each in yaml.load_all(content, Loader) if each is not None]
        # What JSON cannot say is no spec.
        json.dumps(documents)
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise invalid_spec(f"unable to decode yaml document: {' '.join(str(error).split())}") from error
    pipelines = [each for each in documents if isinstance(each, dict) and each.get("pipelineInfo") and each.get("root")]
    platforms = [each for each in documents if isinstance(each, dict) and "kubernetes" in (each.get("platforms") or {})]
    if not pipelines:
        raise invalid_spec("unknown template format")
    for found, kind in ((pipelines, "pipeline"), (platforms, "platform")):
        if len(found) > 1:
            raise invalid_spec(f"multiple {kind} specs provided")
    pipeline, platform = pipelines[0], next(iter(platforms), {})
    check(pipeline)
    return pipeline, platform


def from_struct(struct: Json) -> tuple[Json, Json]:
    """The same from a request's `pipeline_spec`: a plain spec, or both under their names."""
    both = [struct["pipeline_spec"], struct.get("platform_spec")] if "pipeline_spec" in struct else [struct]
    return parse("\n---\n".join(json.dumps(each) for each in both if each).encode())


def to_struct(pipeline: Json, platform: Json) -> Json:
    """Both specs as the server shows them."""
    shown: Json = ordered({"pipeline_spec": pipeline, "platform_spec": platform} if platform else pipeline)
    return shown


def ordered(value: Any) -> Any:
    """A value as JSON of protobuf's Struct: keys in order, whole numbers without a point."""
    if isinstance(value, dict):
        return {key: ordered(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [ordered(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check(pipeline: Json) -> None:
    """Refuse what the real server refuses: a wrong shape, and names that lead nowhere."""
    unknown = sorted(set(pipeline) - TOP_LEVEL)
    if unknown:
        raise invalid_spec(f'invalid v2 pipeline spec: proto: unknown field "{unknown[0]}"')
    for key in ("pipelineInfo", "root", "deploymentSpec", "components"):
        if not isinstance(pipeline.get(key, {}), dict):
            raise invalid_spec(f"invalid v2 pipeline spec: proto: unexpected value in field {key}")
    if pipeline.get("schemaVersion") != "2.1.0":
        version = pipeline.get("schemaVersion", "")
        raise invalid_spec(f"KFP only supports schema version 2.1.0, but the pipeline spec has version {version}")
    name = pipeline["pipelineInfo"].get("name", "")
    if not name:
        raise invalid_spec("invalid v2 pipeline spec: name is empty")
    if not isinstance(name, str) or not PIPELINE_NAME.fullmatch(name):
        raise invalid(
            "pipeline's name must contain only lowercase alphanumeric characters or '-' and must start with alphanumeric characters"
        )


def check_references(pipeline: Json) -> None:
    """Refuse a spec with a task without component or a component without executor, as compiling it for a run does."""
    components = pipeline.get("components", {})
    executors = pipeline.get("deploymentSpec", {}).get("executors", {})
    for owner, component in [("root", pipeline["root"]), *components.items()]:
        label = component.get("executorLabel")
        if label is not None and label not in executors:
            raise _uncompilable(f"component {owner}: executor {label} not found in deployment config")
        for task, each in component.get("dag", {}).get("tasks", {}).items():
            name = each.get("componentRef", {}).get("name")
            if name not in components:
                raise _uncompilable(f"task {task}: component {name} not found")


def _uncompilable(cause: str) -> ApiError:
    message = f"Internal error: Failed to compile job: {cause}"
    return ApiError(INTERNAL, message, message)


def check_parameters(pipeline: Json, parameters: Json) -> None:
    """Refuse parameters that the pipeline does not take, or that are missing or of another type."""
    definitions = pipeline["root"].get("inputDefinitions", {}).get("parameters", {})
    with trying("invalid pipeline job inputs"):
        for name, definition in definitions.items():
            if name not in parameters:
                if not definition.get("isOptional") and "defaultValue" not in definition:
                    raise invalid(
                        f"parameter {name} is not optional, yet has neither default value nor user provided value"
                    )
            else:
                _check_parameter(name, definition, parameters[name])
        extra = [name for name in parameters if name not in definitions]
        if extra:
            raise invalid(f"parameter(s) provided are not required by pipeline: {', '.join(extra)}")


def _check_parameter(name: str, definition: Json, value: Any) -> None:
    kind = definition.get("parameterType", "PARAMETER_TYPE_ENUM_UNSPECIFIED")
    if kind not in PARAMETER_TYPES:
        raise invalid(f"input parameter {name} requires type {kind}, which is invalid for root component")
    wanted, types = PARAMETER_TYPES[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise invalid(f"input parameter {name} requires type {wanted}")
    literals = definition.get("literals")
    if literals and value not in literals:
        raise invalid(
            f'input parameter "{name}" value {value} does not match any of the allowed literal values: {literals}'
        )


MACRO = re.compile(
    r"\[\[(RunUUID|ScheduledTime|CurrentTime|Index)(?:\.(.*?))?\]\]|\{\{\$\.(scheduledTime|currentTime)\.strftime\('(.*?)'\)\}\}"
)
# The parts of Go's reference time.
GO_TIME = (
    ("2006", "%Y"),
    ("01", "%m"),
    ("02", "%d"),
    ("15", "%H"),
    ("04", "%M"),
    ("05", "%S"),
    ("Jan", "%b"),
    ("Mon", "%a"),
)


def expand(parameters: Json, run_id: str, scheduled: str, index: int | None = None) -> Json:
    """Replace [[RunUUID]], [[ScheduledTime]], [[CurrentTime]] and [[Index]] in text parameters."""
    times = {"scheduledtime": datetime.fromisoformat(scheduled), "currenttime": datetime.now(UTC)}

    def value(match: re.Match[str]) -> str:
        name, layout, other, strftime = match.groups()
        if name == "RunUUID":
            return run_id
        if name == "Index":
            return match[0] if index is None else str(index)
        if layout:
            for go, python in GO_TIME:
                layout = layout.replace(go, python)
        return times[(name or other).lower()].strftime(strftime or layout or "%Y%m%d%H%M%S")

    return {key: MACRO.sub(value, each) if isinstance(each, str) else each for key, each in parameters.items()}
