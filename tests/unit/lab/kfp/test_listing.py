"""Lists: filters, order and pages, as the SDK and the UI ask for them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest

from tests.lab.kfp.kfp_server.errors import ApiError
from tests.lab.kfp.kfp_server.listing import page


@dataclass
class Item:
    """Something to list."""

    id: str
    name: str
    created_at: str


FIELDS = {"id": lambda item: item.id, "name": lambda item: item.name, "created_at": lambda item: item.created_at}
ITEMS = [Item(f"id{number}", f"Name {number % 4}", f"2026-01-01T00:00:{number // 2:02}Z") for number in range(30)]


def ids(**query: str) -> list[str]:
    """The ids of a page."""
    return [item.id for item in page(ITEMS, query, FIELDS, "Item")[0]]


def condition(key: str, operation: str | int, kind: str, value: Any) -> str:
    """A filter with one predicate."""
    return json.dumps({"predicates": [{"key": key, "operation": operation, kind: value}]})


def test_the_oldest_come_first_and_a_page_has_20() -> None:
    items, rest = page(ITEMS[::-1], {}, FIELDS, "Item")
    # Those of the same second in the order of their ids.
    assert [item.id for item in items] == [
        item.id for item in sorted(ITEMS, key=lambda item: (item.created_at, item.id))
    ][:20]
    assert rest["total_size"] == 30 and rest["next_page_token"]
    assert page([], {}, FIELDS, "Item") == ([], {})


@pytest.mark.parametrize("order", ["", "name", "name desc", "created_at desc", "id asc"])
def test_pages_have_everything_once_and_in_order(order: str) -> None:
    whole = ids(sort_by=order, page_size="200")
    seen, query = [], {"sort_by": order, "page_size": "7"}
    while True:
        items, rest = page(ITEMS, query, FIELDS, "Item")
        seen += [item.id for item in items]
        assert rest["total_size"] == 30
        if "next_page_token" not in rest:
            break
        # As the SDK does: the token alone is as good as with the rest.
        query = {"page_token": rest["next_page_token"], "page_size": "7", "sort_by": order if len(seen) == 7 else ""}
    assert seen == whole and len(set(seen)) == 30


def test_a_token_stays_right_when_things_go() -> None:
    _, rest = page(ITEMS, {"page_size": "5", "sort_by": "id"}, FIELDS, "Item")
    whole = sorted(item.id for item in ITEMS)
    items, _ = page(
        [item for item in ITEMS if item.id not in whole[:3]], {"page_token": rest["next_page_token"]}, FIELDS, "Item"
    )
    assert items[0].id == whole[5]


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        (condition("name", 1, "stringValue", "Name 1"), 8),
        (condition("name", "EQUALS", "string_value", "name 1"), 8),
        (condition("name", "NOT_EQUALS", "string_value", "Name 1"), 22),
        (condition("name", "IS_SUBSTRING", "string_value", "AME 2"), 7),
        (condition("name", "IN", "string_values", {"values": ["Name 1", "Name 2"]}), 15),
        (condition("created_at", "GREATER_THAN", "timestamp_value", "2026-01-01T01:00:13+01:00"), 2),
        (condition("created_at", "GREATER_THAN_EQUALS", "timestamp_value", "2026-01-01T00:00:13Z"), 4),
        (condition("created_at", "LESS_THAN", "long_value", "1767225601"), 2),
        (condition("created_at", "LESS_THAN_EQUALS", "long_value", 1767225601), 4),
        (quote(condition("name", 1, "stringValue", "Name 1")), 8),
        ('{"predicates": []}', 30),
    ],
)  # fmt: skip
def test_filters(spec: str, count: int) -> None:
    items, rest = page(ITEMS, {"filter": spec, "page_size": "200"}, FIELDS, "Item")
    assert len(items) == rest["total_size"] == count


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"page_size": "-1"}, "The page size should be greater than 0. Got -1"),
        ({"page_size": "x"}, "page_size"),
        ({"sort_by": "color"}, 'Invalid sorting field: "color" on listable type Item'),
        ({"sort_by": "name down"}, "Received invalid sort by format"),
        ({"page_token": "rubbish"}, "Invalid page token"),
        ({"filter": "rubbish"}, "failed to parse valid filter"),
        (
            {"filter": condition("color", 1, "string_value", "red")},
            'no support for filtering on unrecognized field "color"',
        ),
        ({"filter": condition("name", 4, "string_value", "x")}, "invalid predicate operation 4"),
        ({"filter": condition("name", 1, "value", "x")}, "needs exactly one value"),
        (
            {"filter": condition("name", "IN", "string_value", "x")},
            "predicate operation IN does not go with string_value",
        ),
        ({"filter": condition("created_at", 3, "timestamp_value", "x")}, "invalid value for timestamp_value"),
    ],
)
def test_wrong_queries(query: dict[str, str], says: str) -> None:
    with pytest.raises(ApiError) as error:
        page(ITEMS, query, FIELDS, "Item")
    assert error.value.status == 400 and says in str(error.value.external)


def test_token_of_another_query() -> None:
    _, rest = page(ITEMS, {"page_size": "5", "sort_by": "id"}, FIELDS, "Item")
    with pytest.raises(ApiError, match="page token does not match"):
        page(ITEMS, {"page_token": rest["next_page_token"], "sort_by": "name"}, FIELDS, "Item")
