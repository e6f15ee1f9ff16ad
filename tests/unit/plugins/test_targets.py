"""Whom a site lets others speak to: faults and flows."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

_spec = importlib.util.spec_from_file_location(
    "targets_filter", Path(__file__).parents[3] / "plugins/filter/targets.py"
)
assert _spec and _spec.loader
filters = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(filters)


def test_good_targets_have_no_fault() -> None:
    assert filters.target_faults([{"namespace": "a", "pods": {"app": "x"}, "ports": [80]}], "some_targets") == []


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("x", "some_targets[0]: needs namespace and ports"),
        ({"namespace": "A b", "ports": [1]}, "'A b' is no name of a namespace"),
        ({"namespace": "a", "ports": []}, "a list of numbers is needed"),
        ({"namespace": "a", "ports": ["http"]}, "'http' is no port"),
        ({"namespace": "a", "ports": [1], "pods": "x"}, "no mapping of labels"),
    ],
)
def test_faults_name_option_and_remedy(target: Any, fault: str) -> None:
    (found,) = filters.target_faults([target], "some_targets")
    assert fault in found
    assert found.startswith("some_targets[0]")


def test_each_target_is_a_flow() -> None:
    targets = [{"namespace": "a", "ports": [1]}, {"namespace": "b", "pods": {"app": "x"}, "ports": [2, 3]}]
    assert filters.target_flows(targets, {"component": ["worker"]}) == [
        {"name": "target-0", "of": {"component": ["worker"]}, "to": [{"namespace": "a"}], "ports": [1]},
        {
            "name": "target-1",
            "of": {"component": ["worker"]},
            "to": [{"namespace": "b", "pods": {"app": "x"}}],
            "ports": [2, 3],
        },
    ]
