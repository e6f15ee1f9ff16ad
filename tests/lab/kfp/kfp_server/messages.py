"""Bodies of requests: JSON of a protobuf message, whose fields are known and typed."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

from .errors import malformed
from .store import Json, stamp

TIME = "time"
INT = "int"
# A message is a dict of fields; a field is one of these, a Python type, or a tuple of the names of an enum.
Schema = dict[str, Any]

RUNTIME_CONFIG: Schema = {"parameters": dict, "pipeline_root": str}
VERSION_REFERENCE: Schema = {"pipeline_id": str, "pipeline_version_id": str}
STATE: Schema = {"update_time": TIME, "state": str, "error": dict}
EXPERIMENT: Schema = {
    "experiment_id": str, "display_name": str, "description": str, "created_at": TIME, "namespace": str,
    "storage_state": ("STORAGE_STATE_UNSPECIFIED", "AVAILABLE", "ARCHIVED"), "last_run_created_at": TIME,
}  # fmt: skip
RUN: Schema = {
    "experiment_id": str, "run_id": str, "display_name": str, "storage_state": EXPERIMENT["storage_state"], "description": str,
    "pipeline_version_id": str, "pipeline_spec": dict, "pipeline_version_reference": VERSION_REFERENCE,
    "runtime_config": RUNTIME_CONFIG, "service_account": str, "created_at": TIME, "scheduled_at": TIME, "finished_at": TIME,
    "state": str, "error": dict, "run_details": dict, "recurring_run_id": str, "state_history": list, "plugins_input": dict,
    "plugins_output": dict,
}  # fmt: skip
TRIGGER: Schema = {
    "cron_schedule": {"start_time": TIME, "end_time": TIME, "cron": str},
    "periodic_schedule": {"start_time": TIME, "end_time": TIME, "interval_second": INT},
}
RECURRING_RUN: Schema = {
    "recurring_run_id": str, "display_name": str, "description": str, "pipeline_version_id": str, "pipeline_spec": dict,
    "pipeline_version_reference": VERSION_REFERENCE, "runtime_config": RUNTIME_CONFIG, "service_account": str,
    "max_concurrency": INT, "trigger": TRIGGER, "mode": ("MODE_UNSPECIFIED", "ENABLE", "DISABLE"), "created_at": TIME,
    "updated_at": TIME, "status": str, "error": dict, "no_catchup": bool, "namespace": str, "experiment_id": str,
    "plugins_input": dict,
}  # fmt: skip
PIPELINE: Schema = {
    "pipeline_id": str, "display_name": str, "name": str, "description": str, "created_at": TIME, "namespace": str,
    "error": dict, "tags": dict,
}  # fmt: skip
URL: Schema = {"pipeline_url": str}
VERSION: Schema = {
    "pipeline_id": str, "pipeline_version_id": str, "display_name": str, "name": str, "description": str, "created_at": TIME,
    "package_url": URL, "code_source_url": str, "pipeline_spec": dict, "error": dict, "tags": dict,
}  # fmt: skip


def read(body: bytes, schema: Schema) -> Json:
    """The message in a body; field names may be snake_case or camelCase, null is as good as nothing."""
    if not body:
        return {}
    try:
        message = json.loads(body)
    except ValueError as error:
        raise malformed(f"syntax error: {error}") from error
    return _message(message, schema, "")


def _message(message: Any, schema: Schema, field: str) -> Json:
    if not isinstance(message, dict):
        raise malformed(f"unexpected token {json.dumps(message)}" + (f" for field {field}" if field else ""))
    found = {}
    for key, value in message.items():
        name = re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), key)
        if name not in schema:
            raise malformed(f'unknown field "{key}"')
        if value is not None:
            found[name] = _value(value, schema[name], name)
    return found


def _value(value: Any, kind: Any, field: str) -> Any:
    if isinstance(kind, dict):
        return _message(value, kind, field)
    if kind == TIME:
        return _time(value, field)
    if kind == INT:
        if isinstance(value, bool) or not re.fullmatch(r"-?\d+", str(value)):
            raise malformed(f"invalid value for int64 field {field}: {json.dumps(value)}")
        return int(value)
    if isinstance(kind, tuple):
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(kind):
            return kind[value]
        if value not in kind:
            raise malformed(f"invalid value for enum field {field}: {json.dumps(value)}")
        return value
    if not isinstance(value, kind):
        name = {str: "string", bool: "bool", dict: "message", list: "repeated"}[kind]
        raise malformed(f"invalid value for {name} field {field}: {json.dumps(value)}")
    return value


def _time(value: Any, field: str) -> str:
    try:
        # A fraction may have more digits than Python reads; whole seconds are all that is kept.
        time = datetime.fromisoformat(re.sub(r"\.\d+", "", value))
    except (TypeError, ValueError) as error:
        raise malformed(f"invalid google.protobuf.Timestamp value {json.dumps(value)} for field {field}") from error
    return stamp(time if time.tzinfo else time.replace(tzinfo=UTC))
