"""Lists as the API gives them: filtered, sorted, a page at a time."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar
from urllib.parse import unquote_plus

from .errors import invalid, trying
from .store import Json, stamp

T = TypeVar("T")
DEFAULT_PAGE, MAX_PAGE = 20, 200
OPERATIONS = {
    1: "EQUALS",
    2: "NOT_EQUALS",
    3: "GREATER_THAN",
    5: "GREATER_THAN_EQUALS",
    6: "LESS_THAN",
    7: "LESS_THAN_EQUALS",
    8: "IN",
    9: "IS_SUBSTRING",
}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
VALUES = ("int_value", "long_value", "string_value", "timestamp_value", "int_values", "long_values", "string_values")


def _text(value: Any) -> str:
    # MySQL compares without regard to case.
    return str(value).lower()


COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "EQUALS": lambda have, want: _text(have) == _text(want),
    "NOT_EQUALS": lambda have, want: _text(have) != _text(want),
    "GREATER_THAN": lambda have, want: bool(have > want),
    "GREATER_THAN_EQUALS": lambda have, want: bool(have >= want),
    "LESS_THAN": lambda have, want: bool(have < want),
    "LESS_THAN_EQUALS": lambda have, want: bool(have <= want),
    "IN": lambda have, want: _text(have) in [_text(each) for each in want],
    "IS_SUBSTRING": lambda have, want: _text(want) in _text(have),
}


def page(
    items: Sequence[T], query: Mapping[str, str], fields: Mapping[str, Callable[[T], Any]], kind: str
) -> tuple[list[T], Json]:
    """The page of `items` that a query asks for, and total_size and next_page_token where the answer has them.

    `fields` has the fields one may filter and sort by, first the key. As in the real server a token carries filter and order.
    """
    size = _size(query.get("page_size", ""))
    token = query.get("page_token", "")
    asked = (query.get("sort_by", ""), query.get("filter", ""))
    start: list[Any] | None = None
    sort_by, spec = asked
    if token:
        sort_by, spec, start = _read_token(token)
        if any(asked) and asked != (sort_by, spec):
            raise invalid(
                "page token does not match the supplied sort by and/or filtering criteria. Either specify the same criteria or "
                "leave the latter empty if page token is specified"
            )
    field, descending = _order(sort_by, fields, kind)
    matches = _filter(spec, fields)
    key = next(iter(fields.values()))

    def place(item: T) -> list[Any]:
        return [fields[field](item), key(item)]

    found = sorted((item for item in items if matches(item)), key=place, reverse=descending)
    rest = [item for item in found if start is None or (place(item) <= start if descending else place(item) >= start)]
    answer: Json = {"total_size": len(found)} if found else {}
    if len(rest) > size:
        following = json.dumps({"sort_by": sort_by, "filter": spec, "start": place(rest[size])})
        answer["next_page_token"] = base64.b64encode(following.encode()).decode()
    return rest[:size], answer


def _size(value: str) -> int:
    if not re.fullmatch(r"-?\d*", value):
        raise invalid(f"parsing field page_size: invalid value {value}")
    size = int(value or 0)
    if size < 0:
        raise invalid(f"The page size should be greater than 0. Got {size}")
    return min(size or DEFAULT_PAGE, MAX_PAGE)


def _read_token(token: str) -> tuple[str, str, list[Any]]:
    try:
        read = json.loads(base64.b64decode(token, validate=True))
        return read["sort_by"], read["filter"], list(read["start"])
    except (ValueError, KeyError, TypeError) as error:
        raise invalid("Invalid page token") from error


def _order(sort_by: str, fields: Mapping[str, Any], kind: str) -> tuple[str, bool]:
    words = sort_by.lower().split()
    if len(words) > 2 or (len(words) == 2 and words[1] not in ("asc", "desc")):
        raise invalid(
            f'Received invalid sort by format "{sort_by}". Supported format: "field_name", "field_name desc", or "field_name asc"'
        )
    field = words[0] if words else "created_at"
    if field not in fields:
        raise invalid(f'Invalid sorting field: "{field}" on listable type {kind}')
    return field, words[1:] == ["desc"]


def _filter(spec: str, fields: Mapping[str, Callable[[T], Any]]) -> Callable[[T], bool]:
    with trying("Failed to create list options"):
        conditions = [_predicate(each, fields) for each in _predicates(spec)]
    return lambda item: all(condition(item) for condition in conditions)


def _predicates(spec: str) -> list[Json]:
    if not spec:
        return []
    try:
        # The SDK sends plain JSON, documented is JSON quoted as in a URL.
        read = json.loads(spec if spec.lstrip().startswith("{") else unquote_plus(spec))
        predicates: list[Json] = list(read.get("predicates", []))
        if not set(read) <= {"predicates"} or not all(isinstance(each, dict) for each in predicates):
            raise ValueError("it must be an object with a list of predicates")
    except (ValueError, AttributeError, TypeError) as error:
        raise invalid(f"failed to parse valid filter from {json.dumps(spec)}: {error}") from error
    return predicates


def _predicate(predicate: Json, fields: Mapping[str, Callable[[T], Any]]) -> Callable[[T], bool]:
    named = {re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), key): value for key, value in predicate.items()}
    operation = named.pop("operation", 0)
    name = OPERATIONS.get(operation, "") if isinstance(operation, int) else str(operation)
    if name not in COMPARE:
        raise invalid(f"invalid predicate operation {operation}")
    key = named.pop("key", "")
    if key not in fields and not key.startswith("tags."):
        raise invalid(f'no support for filtering on unrecognized field "{key}"')
    if len(named) != 1 or next(iter(named)) not in VALUES:
        raise invalid(f"predicate on {key} needs exactly one value of {', '.join(VALUES)}")
    kind, value = next(iter(named.items()))
    want = _want(kind, value, name)

    def matches(item: T) -> bool:
        have = fields[key](item) if key in fields else getattr(item, "tags", {}).get(key.removeprefix("tags."), "")
        if isinstance(want, int):
            # To whoever compares with a number, times are seconds.
            have = int(datetime.fromisoformat(have).timestamp()) if TIME.fullmatch(have) else -1
        return COMPARE[name](have, want)

    return matches


def _want(kind: str, value: Any, operation: str) -> Any:
    if (operation == "IN") != kind.endswith("s"):
        raise invalid(f"predicate operation {operation} does not go with {kind}")
    try:
        if operation == "IN":
            return list(value["values"])
        if kind == "string_value":
            return str(value)
        return stamp(datetime.fromisoformat(value)) if kind == "timestamp_value" else int(value)
    except (ValueError, TypeError, KeyError) as error:
        raise invalid(f"invalid value for {kind}: {json.dumps(value)}") from error
