"""The front door: what must be right before anything is made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, Kube, items

TRAEFIK = "/apis/traefik.io/v1alpha1"
CLASS = "traefik"
STORE = "default"
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# Also part of the name of a NetworkPolicy and of an HTML id.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
# The longest name below a domain that the platform itself uses, and room for applications.
_ROOM = len("kubeflow-pipelines.")


def domain_problem(domain: str) -> str:
    """Why a text does not do as the site's domain, empty if it does."""
    labels = domain.split(".")
    wrong = [label for label in labels if not _LABEL.fullmatch(label)]
    if wrong:
        found = ", ".join(repr(label) for label in wrong)
        return f"slipway_domain is {domain!r}: {found} is no DNS label (lower-case letters, digits, hyphens inside, at most 63)"
    if len(labels) < 2:
        return f"slipway_domain is {domain!r}: it needs a dot, as in lab.internal; nobody issues a certificate for *.{domain}"
    if len(domain) + _ROOM > 253:
        return f"slipway_domain has {len(domain)} characters; names below it would be longer than 253"
    if labels[-1].isdigit():
        return f"slipway_domain is {domain!r}, which is an address; people reach components by names below a domain"
    return ""


def link_problems(links: Sequence[Json]) -> list[str]:
    """What is wrong with the links that a user gives."""
    found = []
    names = [link.get("name") for link in links]
    for link in links:
        name = str(link.get("name"))
        where = f"front_door_links, {name}"
        if not _NAME.fullmatch(name):
            found.append(f"{where}: name: lower-case letters, digits and hyphens inside, at most 40")
        if names.count(name) > 1:
            found.append(f"{where}: name: given twice")
        health = link.get("health") or {}
        for key, url in (("url", link.get("url")), ("health.url", health.get("url"))):
            if url and not _is_web(url):
                found.append(f"{where}: {key}: {url!r} is no http or https URL")
        if health and not (health.get("url") and health.get("namespace") and health.get("port")):
            found.append(f"{where}: health: url, namespace and port are needed")
    return list(dict.fromkeys(found))


def cluster_problems(kube: Kube, namespace: str, middleware: str) -> list[str]:
    """What is in the way in the cluster: no Traefik, another default certificate, a Middleware that is not there."""
    if kube.get(f"/apis/networking.k8s.io/v1/ingressclasses/{CLASS}") is None or kube.get(TRAEFIK) is None:
        return ["the cluster has no Traefik (IngressClass traefik and its kinds)"]
    found = []
    stores = items(kube, f"{TRAEFIK}/tlsstores")
    others = [
        item["metadata"]["namespace"]
        for item in stores
        if item["metadata"]["name"] == STORE and item["metadata"]["namespace"] != namespace
    ]
    for other in others:
        found.append(
            f"there is a TLSStore {STORE} in namespace {other}: Traefik takes none where there are two. Remove it "
            f"(kubectl -n {other} delete tlsstore {STORE}) and give its certificate by front_door_certificate if it is wanted"
        )
    if middleware and kube.get(f"{TRAEFIK}/namespaces/{namespace}/middlewares/{middleware}") is None:
        found.append(
            f"front_door_auth_middleware is {middleware!r}, but there is no Middleware of that name in namespace {namespace}; "
            "make it first, with what it asks"
        )
    return found


def check_or_raise(problems: Sequence[str]) -> None:
    """Raise SlipwayError with all problems, if there are any."""
    if problems:
        raise SlipwayError("The front door cannot be made:\n" + "\n".join(f"- {problem}" for problem in problems))


def _is_web(url: Any) -> bool:
    try:
        parts = urlsplit(str(url))
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
