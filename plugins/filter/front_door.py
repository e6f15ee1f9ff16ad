"""Filters for the front door: the links of the start page, and what they ask for elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

Json = dict[str, Any]

_HOST = re.compile(r"https?://([\w.-]+)")


def merge_links(own: Mapping[str, Json], active: Iterable[str], given: Iterable[Json]) -> list[Json]:
    """What the start page lists: the active ones of the platform's components, then what users add.

    A link of a user replaces the component's of the same name. Names have hyphens where roles have underscores.
    """
    names = {name: name.replace("_", "-") for name in active if name in own}
    links: dict[str, Json] = {link: {"name": link, **own[name]} for name, link in names.items()}
    for link in given:
        links[link["name"]] = dict(link)
    return list(links.values())


def hosts(links: Iterable[Json], domain: str) -> list[str]:
    """The names that a certificate without a wildcard needs: the domain, and the hosts of links one label below it."""
    texts = [f"{link.get('url') or ''} {link.get('command') or ''}" for link in links]
    named = {host.lower() for text in texts for host in _HOST.findall(text)}
    below = {host for host in named if host.endswith(f".{domain}") and "." not in host.removesuffix(f".{domain}")}
    return [domain, *sorted(below)]


def health_flows(links: Iterable[Json], page: Mapping[str, str]) -> list[Json]:
    """The flows from the start page (pods with labels `page`) to what it asks, one for each link with health."""
    flows = []
    for link in links:
        if health := link.get("health"):
            peer = {"namespace": health["namespace"], **({"pods": health["pods"]} if health.get("pods") else {})}
            flows.append(
                {"name": f"health-{link['name']}", "of": dict(page), "to": [peer], "ports": [int(health["port"])]}
            )
    return flows


def page_config(links: Iterable[Json], site: str, domain: str, kubeconfig: str, ca: str, project: str) -> Json:
    """The start page's configuration; paths of files are told from the folder `project`, if they are below it."""
    keys = ("name", "title", "description", "version", "url", "command", "credentials")
    components = []
    for link in links:
        item = {key: link[key] for key in keys if link.get(key)}
        item.setdefault("title", link["name"])
        components.append({**item, **({"health": link["health"]["url"]} if link.get("health") else {})})
    paths = {"kubeconfig": _from(project, kubeconfig), "ca": _from(project, ca)}
    return {"site": site, "domain": domain, **paths, "components": components}


def _from(folder: str, path: str) -> str:
    below = PurePath(path).is_relative_to(folder)
    return str(PurePath(path).relative_to(folder)) if below else path


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "front_door_links": merge_links,
            "front_door_hosts": hosts,
            "front_door_health_flows": health_flows,
            "front_door_page": page_config,
        }
