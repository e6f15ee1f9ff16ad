"""A lab site: which nodes it has, read from its inventory, and where its state lies on this machine."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.cache import PROJECT
from tests.lab.hardware import MAX_GPUS
from tests.lab.process import LabError, run

CLUSTER = "k3s_cluster"
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")


@dataclass(frozen=True)
class Site:
    """A site's name, its nodes as name -> IPv4 address in inventory order, the folder of its state, simulated GPUs by node."""

    name: str
    nodes: dict[str, ipaddress.IPv4Address]
    state: Path
    gpus: dict[str, int]

    @property
    def network(self) -> str:
        """Name of the podman network."""
        return f"slipway-{self.name}"

    @property
    def subnet(self) -> ipaddress.IPv4Network:
        """The /24 that holds all nodes; its first address is this machine's."""
        return ipaddress.IPv4Network((next(iter(self.nodes.values())), 24), strict=False)

    @property
    def gateway(self) -> ipaddress.IPv4Address:
        """This machine's address in the subnet."""
        return self.subnet[1]

    @property
    def key(self) -> Path:
        """The private SSH key for the nodes."""
        return self.state / "ssh/id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The nodes' host keys."""
        return self.state / "known_hosts"

    def container(self, node: str) -> str:
        """Name of a node's container.

        Raises:
            LabError: the site has no such node.
        """
        if node not in self.nodes:
            raise LabError(f"site {self.name} has no node {node!r}; it has {', '.join(self.nodes)}")
        return f"{self.network}-{node}"

    def volumes(self, node: str) -> dict[str, str]:
        """A node's volumes, name -> mount point."""
        container = self.container(node)
        return {f"{container}-rancher": "/var/lib/rancher", f"{container}-kubelet": "/var/lib/kubelet"}


def check_name(name: str) -> str:
    """The name of a site, if podman and file names can carry it.

    Raises:
        LabError: they cannot.
    """
    if not NAME.fullmatch(name):
        raise LabError(f"--site {name!r}: a site's name has 1 to 32 characters a-z, 0-9 and -, with no - at its ends")
    return name


def state_folder(name: str) -> Path:
    """Where the site `name` keeps its state on this machine."""
    return PROJECT / ".slipway" / name


def read_site(name: str, inventory: Path) -> Site:
    """Read the nodes of site `name`, the members of the group k3s_cluster, as Ansible sees them.

    Raises:
        LabError: the inventory cannot be used; the message names the file and the key.
    """
    check_name(name)
    if not inventory.is_file():
        raise LabError(f"{inventory}: no such file")
    listed = run(
        [Path(sys.executable).with_name("ansible-inventory"), "--inventory", inventory, "--list"],
        env={**os.environ, "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true", "ANSIBLE_NOCOLOR": "true"},
    )
    return site_of(name, json.loads(listed.stdout), inventory)


def site_of(name: str, listed: dict[str, Any], inventory: Path) -> Site:
    """The site in what `ansible-inventory --list` prints; `inventory` is named in messages only.

    Raises:
        LabError: as `read_site`.
    """
    if CLUSTER not in listed:
        raise LabError(f"{inventory}: no group {CLUSTER}")
    variables = listed["_meta"]["hostvars"]
    nodes: dict[str, ipaddress.IPv4Address] = {}
    gpus: dict[str, int] = {}
    for host in _members(listed, CLUSTER):
        key = f"{inventory}: {host}.ansible_host"
        if not NAME.fullmatch(host):
            raise LabError(f"{inventory}: {host}: a node's name has 1 to 32 characters a-z, 0-9 and -")
        value = variables.get(host, {}).get("ansible_host")
        if value is None:
            raise LabError(f"{key}: missing; a lab node needs a fixed IPv4 address")
        try:
            address = ipaddress.IPv4Address(value)
        except ValueError as error:
            raise LabError(f"{key}: {value!r} is not an IPv4 address") from error
        if address in nodes.values():
            raise LabError(f"{key}: {address} is used twice")
        nodes[host] = address
        gpus[host] = _gpus(variables[host].get("lab_gpus", 0), f"{inventory}: {host}.lab_gpus")
    if not nodes:
        raise LabError(f"{inventory}: group {CLUSTER} has no hosts")
    site = Site(name, nodes, state_folder(name), gpus)
    for host, address in nodes.items():
        if address not in site.subnet:
            raise LabError(
                f"{inventory}: {host}.ansible_host: {address} is outside {site.subnet}; a lab site is one /24"
            )
        if address in (site.subnet[0], site.gateway, site.subnet[-1]):
            raise LabError(f"{inventory}: {host}.ansible_host: {address} is taken by the network itself")
    return site


def _gpus(value: Any, key: str) -> int:
    """The number of simulated GPUs that an inventory says; `key` is named in the message. Raises LabError."""
    if type(value) is not int or not 0 <= value <= MAX_GPUS:
        raise LabError(f"{key}: {value!r} is not a number from 0 to {MAX_GPUS}")
    return value


def _members(listed: dict[str, Any], group: str) -> list[str]:
    """Hosts of a group and of the groups in it, each once, in inventory order."""
    found = list(listed.get(group, {}).get("hosts", []))
    for child in listed.get(group, {}).get("children", []):
        found += [host for host in _members(listed, child) if host not in found]
    return found
