"""Reading a lab site's inventory: good ones, and messages for bad ones."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest

from tests.lab.process import LabError
from tests.lab.site import check_name, read_site, site_of

FILE = Path("inventories/x/hosts.yml")


def listed(**addresses: Any) -> dict[str, Any]:
    """What ansible-inventory prints for agents with these addresses."""
    hostvars = {name: {} if value is None else {"ansible_host": value} for name, value in addresses.items()}
    return {
        "_meta": {"hostvars": hostvars},
        "k3s_cluster": {"children": ["server", "agent"]},
        "agent": {"hosts": list(addresses)},
    }


def test_reads_an_inventory_as_ansible_does(tmp_path: Path) -> None:
    file = tmp_path / "hosts.yml"
    file.write_text(
        "all: {vars: {ansible_user: ops}}\n"
        "k3s_cluster: {children: {server: {hosts: {s1: {ansible_host: 10.9.0.11}}}, agent: {}}}\n"
        "agent: {hosts: {a1: {ansible_host: 10.9.0.12, lab_gpus: 2}}}\n"
    )
    site = read_site("x", file)
    assert site.nodes == {"s1": ipaddress.IPv4Address("10.9.0.11"), "a1": ipaddress.IPv4Address("10.9.0.12")}
    assert site.gpus == {"s1": 0, "a1": 2}
    assert str(site.subnet) == "10.9.0.0/24"
    assert str(site.gateway) == "10.9.0.1"
    assert site.network == "slipway-x"
    assert site.container("a1") == "slipway-x-a1"
    assert site.volumes("a1") == {
        "slipway-x-a1-rancher": "/var/lib/rancher",
        "slipway-x-a1-kubelet": "/var/lib/kubelet",
    }


@pytest.mark.parametrize(
    ("addresses", "message"),
    [
        ({"a1": None}, r"hosts\.yml: a1\.ansible_host: missing"),
        ({"a1": "10.9.0"}, r"hosts\.yml: a1\.ansible_host: '10\.9\.0' is not an IPv4 address"),
        ({"a1": "10.9.0.5", "a2": "10.9.0.5"}, r"hosts\.yml: a2\.ansible_host: 10\.9\.0\.5 is used twice"),
        ({"a1": "10.9.0.5", "a2": "10.9.1.5"}, r"hosts\.yml: a2\.ansible_host: 10\.9\.1\.5 is outside 10\.9\.0\.0/24"),
        ({"a1": "10.9.0.1"}, r"hosts\.yml: a1\.ansible_host: 10\.9\.0\.1 is taken"),
        ({"a_1": "10.9.0.5"}, r"hosts\.yml: a_1: a node's name"),
        ({}, r"hosts\.yml: group k3s_cluster has no hosts"),
    ],
)
def test_bad_hosts_are_named(addresses: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        site_of("x", listed(**addresses), FILE)


@pytest.mark.parametrize("gpus", ["2", -1, 65, True, "{{ 1 }}"])
def test_bad_number_of_gpus_is_named(gpus: Any) -> None:
    bad = listed(a1="10.9.0.5")
    bad["_meta"]["hostvars"]["a1"]["lab_gpus"] = gpus
    with pytest.raises(LabError, match=r"hosts\.yml: a1\.lab_gpus: .* is not a number from 0 to 64"):
        site_of("x", bad, FILE)


def test_missing_group_and_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"hosts\.yml: no group k3s_cluster"):
        site_of("x", {"_meta": {"hostvars": {}}}, FILE)
    with pytest.raises(LabError, match=r"nowhere\.yml: no such file"):
        read_site("x", tmp_path / "nowhere.yml")


def test_broken_yaml_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "hosts.yml"
    file.write_text("k3s_cluster: {hosts: [\n")
    with pytest.raises(LabError, match=r"hosts\.yml"):
        read_site("x", file)


@pytest.mark.parametrize("name", ["", "-a", "a/b", "A", "a" * 40, "../x"])
def test_unusable_site_names_are_refused(name: str) -> None:
    with pytest.raises(LabError, match="--site"):
        check_name(name)


def test_unknown_node_names_the_known_ones() -> None:
    site = site_of("x", listed(a1="10.9.0.5"), FILE)
    with pytest.raises(LabError, match=r"site x has no node 'a9'; it has a1"):
        site.container("a9")
