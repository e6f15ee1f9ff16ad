"""Filters for the values of the GPU operator's chart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError

# A kubelet shows a changed ConfigMap to its pods up to a minute late: the usual numbers are there from the start.
_USUAL = range(1, 9)


def sharing_configs(shares: Iterable[Any]) -> dict[str, str]:
    """The device plugin's configurations `share-<n>`, as YAML, for the usual numbers of pods on a GPU and those in `shares`.

    Raises AnsibleFilterError when one of them is no number from 1 on.
    """
    numbers = set(_USUAL)
    for share in shares:
        if not isinstance(share, int) or share < 1:
            raise AnsibleFilterError(f"sharing_configs: {share!r} is no number of pods")
        numbers.add(int(share))
    configs = {}
    for number in sorted(numbers):
        config: dict[str, Any] = {"version": "v1"}
        if number > 1:
            config["sharing"] = {"timeSlicing": {"resources": [{"name": "nvidia.com/gpu", "replicas": number}]}}
        configs[f"share-{number}"] = yaml.safe_dump(config, sort_keys=False)
    return configs


def gpu_quotas(quotas: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The ResourceQuotas that limit how many GPUs the pods of each namespace may hold at a time."""
    return [
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {
                "name": "slipway-gpus",
                "namespace": namespace,
                "labels": {"app.kubernetes.io/managed-by": "slipway"},
            },
            "spec": {"hard": {"requests.nvidia.com/gpu": str(number)}},
        }
        for namespace, number in quotas.items()
    ]


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return names and functions."""
        return {"sharing_configs": sharing_configs, "gpu_quotas": gpu_quotas}
