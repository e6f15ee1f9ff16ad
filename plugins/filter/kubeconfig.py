"""Filter that turns a server's own kubeconfig into a site's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError


def kubeconfig_for(text: str, name: str, server: str) -> str:
    """Return the kubeconfig `text` with the API at `server` and `name` for its one cluster, user and context.

    Raises:
        AnsibleFilterError: `text` is not a kubeconfig with exactly one cluster and one user.
    """
    try:
        config: dict[str, Any] = yaml.safe_load(text)
        (cluster,), (user,) = config["clusters"], config["users"]
        cluster["cluster"], user["user"]
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise AnsibleFilterError(
            f"k3s.yaml: not a kubeconfig with one cluster and one user ({type(error).__name__})"
        ) from None
    # Ansible hands over strings of a type of its own, which YAML does not know.
    name, cluster["cluster"]["server"] = str(name), str(server)
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": cluster["cluster"]}],
            "users": [{"name": name, "user": user["user"]}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        },
        sort_keys=False,
    )


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return names and functions."""
        return {"kubeconfig_for": kubeconfig_for}
