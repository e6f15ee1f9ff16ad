"""Parameter values as the real server writes them: JSON, in which a number is a double."""

from __future__ import annotations

import json
import re
from typing import Any

Json = dict[str, Any]


def normal(value: Any) -> Any:
    """A value with whole numbers as integers, as the real server prints them: 10.0 is 10."""
    if isinstance(value, dict):
        return {key: normal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [normal(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return int(value)
    return value


def dump(value: Any) -> str:
    """JSON in its shortest form."""
    return json.dumps(normal(value), separators=(",", ":"), ensure_ascii=False)


def text(value: Any) -> str:
    """A value as command line arguments and STRING parameters have it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else dump(value)


def kind(value: Any) -> str:
    """What sort of value this is, in the words of the real server's messages."""
    for types, name in ((bool, "bool"), ((int, float), "number"), (str, "string"), (list, "list"), (dict, "struct")):
        if isinstance(value, types):
            return name
    return "null"


# Which sort of value a parameter of each type takes; a STRING takes any.
_KIND_OF_TYPE = {
    "NUMBER_DOUBLE": "number",
    "NUMBER_INTEGER": "number",
    "BOOLEAN": "bool",
    "LIST": "list",
    "STRUCT": "struct",
    "TASK_FINAL_STATUS": "struct",
}


def typed(name: str, value: Any, parameter_type: str) -> Any:
    """A value for a parameter of a type: anything becomes a STRING, all else must fit. Raises ValueError."""
    if parameter_type == "STRING":
        return text(value)
    if kind(value) != _KIND_OF_TYPE.get(parameter_type):
        raise ValueError(f'input parameter "{name}" type mismatch: expect {parameter_type}, got {kind(value)}')
    return value


def from_text(content: str, parameter_type: str) -> Any:
    """What a component wrote into the file of an output parameter. Raises ValueError."""
    if parameter_type == "STRING":
        return content
    stripped = content.strip()
    if parameter_type == "NUMBER_INTEGER" and re.fullmatch(r"[+-]?\d+", stripped):
        return int(stripped)
    if parameter_type == "NUMBER_DOUBLE":
        return float(stripped)
    if parameter_type == "BOOLEAN" and stripped in _BOOLEANS:
        return _BOOLEANS[stripped]
    if parameter_type in ("LIST", "STRUCT"):
        value = json.loads(content)
        if kind(value) == _KIND_OF_TYPE[parameter_type]:
            return value
    raise ValueError(f"{content[:200]!r} is no {parameter_type}")


_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}
