"""Filters for the front door: what the links of the start page ask for elsewhere."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.slipway import front_door


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "front_door_links": front_door.merge_links,
            "front_door_hosts": front_door.hosts,
            "front_door_health_flows": front_door.health_flows,
            "front_door_page": front_door.page_config,
        }
