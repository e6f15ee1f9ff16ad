"""The fingerprint under which a task's outputs are kept: made of the same things as that of the real server."""

from __future__ import annotations

import hashlib

from . import pipeline as compiled
from .nodes import Json, Node
from .values import dump


def fingerprint(pipeline: str, task: Json, component: Json, container: Json, node: Node, claims: list[str]) -> str:
    """Inputs, outputs, image, command and volume claims as one hash; a cache key of the task's own in place of all of it.

    The command counts as it is compiled, with its placeholders. An input artifact counts by its name, which is another for every
    artifact that was made, and the same for one that came out of the cache. Entries are for one pipeline.
    """
    own = task.get("cachingOptions", {}).get("cacheKey", "")
    if own:
        return _hash([pipeline, task["componentRef"]["name"], own])
    outputs = compiled.parameters(component, "output")
    return _hash(
        [
            pipeline,
            {name: [artifact["name"] for artifact in listed] for name, listed in node.inputs["artifacts"].items()},
            node.inputs["parameters"],
            {
                name: {key: value for key, value in artifact.items() if key != "uri"}
                for name, artifact in node.wanted.get("artifacts", {}).items()
            },
            {name: definition.get("parameterType", "") for name, definition in outputs.items()},
            container.get("image", ""),
            [*container.get("command", []), *container.get("args", [])],
            claims,
        ]
    )


def enabled(task: Json) -> bool:
    """Whether a task's outputs may come from an earlier run."""
    return bool(task.get("cachingOptions", {}).get("enableCache"))


def _hash(parts: list[object]) -> str:
    # Sorted at every depth, so that the order in which things are written does not count.
    return hashlib.sha256(dump(_sorted(parts)).encode()).hexdigest()


def _sorted(value: object) -> object:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value
