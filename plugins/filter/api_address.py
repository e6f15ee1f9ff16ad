"""Filters for the address that servers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError


def interface_of(facts: Mapping[str, Any], address: str) -> str:
    """The network interface that has the IPv4 address, in Ansible's facts of a machine.

    Raises AnsibleFilterError where none has, as with a name in the place of an address.
    """
    for name in facts.get("interfaces") or []:
        # Facts have names of their own for what Python could not call so.
        interface = facts.get(name.replace("-", "_").replace(".", "_").replace(":", "_")) or {}
        if not isinstance(interface, Mapping):
            continue
        found = [interface.get("ipv4") or {}, *(interface.get("ipv4_secondaries") or [])]
        if any(each.get("address") == address for each in found):
            return str(interface.get("device") or name)
    raise AnsibleFilterError(
        f"no network interface of this machine has the address {address}; ansible_host must be its own address, or name the interface with "
        "api_address_interface"
    )


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return names and functions."""
        return {"interface_of": interface_of}
