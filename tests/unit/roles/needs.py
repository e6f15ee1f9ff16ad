"""Holds what a role says of its needs against the objects that come of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ansible.module_utils

ansible.module_utils.__path__.append(str(Path(__file__).parents[3] / "plugins/module_utils"))
from ansible.module_utils.slipway.needs import amount, object_needs  # noqa: E402


def total(pods: Iterable[Mapping[str, Any]]) -> tuple[int, float, int]:
    """Number of pods, cores and bytes of all of them; as on one node."""
    count = cpu = memory = 0.0
    for each in pods:
        count += each["count"]
        cpu += each["count"] * each["cpu"]
        memory += each["count"] * each["memory"]
    return int(count), round(cpu, 3), int(memory)


def assert_same(needs: Mapping[str, Any], objects: Iterable[Mapping[str, Any]]) -> None:
    """As many pods that ask for as much, and the claims, if the objects bring any."""
    listed = list(objects)
    assert total(needs["pods"]) == total(object_needs(listed, ""))
    made = {
        item["metadata"]["name"]: amount(item["spec"]["resources"]["requests"]["storage"], "")
        for item in listed
        if item["kind"] == "PersistentVolumeClaim"
    }
    said = {each["name"]: amount(each["size"], each["variable"]) for each in needs.get("volumes", [])}
    assert not made or made == said
