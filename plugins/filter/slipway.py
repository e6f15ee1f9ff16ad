"""Filters for values that playbooks hand on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

# https://pkg.go.dev/github.com/distribution/reference: [domain[:port]/]path[:tag][@digest]
_IMAGE = re.compile(
    r"(?P<repository>(?:[a-zA-Z0-9.-]+(?::\d+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


def merge_values(base: Any, *others: Any) -> dict[str, Any]:
    """`base` with `others` laid over it, one after the other: mappings are merged at every depth, all else is replaced.

    As Helm merges values: a list replaces a list, null takes a key's place. Raises AnsibleFilterError on anything but mappings.
    """
    merged: dict[str, Any] = {}
    for layer in (base, *others):
        if not isinstance(layer, Mapping):
            raise AnsibleFilterError(f"merge_values: {type(layer).__name__} is no mapping")
        for key, value in layer.items():
            old = merged.get(key)
            both = isinstance(old, Mapping) and isinstance(value, Mapping)
            merged[key] = merge_values(old, value) if both else value
    return merged


def image_ref(reference: Any) -> dict[str, str]:
    """The parts of an image reference: `registry` (empty: none named), `repository` with it, `name`, `tag` and `digest`.

    Raises AnsibleFilterError if it is none.
    """
    match = _IMAGE.fullmatch(str(reference))
    if not match:
        raise AnsibleFilterError(f"image_ref: {reference!r} is no image reference")
    head, slash, rest = match["repository"].partition("/")
    # Docker's rule: the first part is a host only if it looks like one.
    registry = head if slash and (head == "localhost" or "." in head or ":" in head) else ""
    return {
        "registry": registry,
        "repository": match["repository"],
        "name": rest if registry else match["repository"],
        "tag": match["tag"] or "",
        "digest": match["digest"] or "",
    }


def chart_image(reference: Any) -> dict[str, str]:
    """An image reference as charts that join `repository`, `image` and `version` take it.

    Raises AnsibleFilterError if it is none or lacks one of the three.
    """
    parts = image_ref(reference)
    repository, _, image = parts["repository"].rpartition("/")
    if not repository or not parts["tag"]:
        raise AnsibleFilterError(f"chart_image: {reference!r} has no repository or no tag")
    return {"repository": repository, "image": image, "version": parts["tag"]}


def bundle_file(artifact: dict[str, Any], folder: str, dest: str, mode: str) -> dict[str, str]:
    """One file for the module bundle_files: `artifact` of the bundle in `folder`, to go to `dest` (a folder if it ends in /)."""
    name = artifact["path"].rpartition("/")[2] if dest.endswith("/") else ""
    return {"src": f"{folder}/{artifact['path']}", "dest": dest + name, "sha256": artifact["sha256"], "mode": mode}


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "merge_values": merge_values,
            "image_ref": image_ref,
            "chart_image": chart_image,
            "bundle_file": bundle_file,
        }
