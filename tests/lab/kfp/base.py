"""The stand-in for upstream's manifests of Kubeflow Pipelines.

Upstream's Git repository is not in the registries that the lab builds from. What its kustomize base renders to was recorded:
names, kinds, containers, variables, keys and ports of every object. Objects are made from that list here, so that the role's
overlay meets the same targets, and finds the same faults to mend, as on the real base. base.yml has what the list does not say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.lab.cache import PROJECT
from tests.lab.process import LabError

Json = dict[str, Any]

RECORDED = PROJECT / "tests/unit/roles/data/kfp-objects.jsonl"
DATA = Path(__file__).parent / "base.yml"
NAMESPACE = "kubeflow"
LABELS = {"application-crd-id": "kubeflow-pipelines"}
CONFIG = "pipeline-install-config"
AUDIENCE = "pipelines.kubeflow.org"
# What stands beside the recorded images in arguments and variables, by the recorded image it goes with.
BESIDE = {"kfp-driver": "kfp-api-server", "kfp-launcher": "kfp-api-server", "argoexec": "workflow-controller"}
WAIT_IMAGE = "docker.io/alpine:3.23"
# Upstream's way of asking whether a port is open, `nc -z`, is none that Debian's busybox knows.
WAIT = """\
attempt=0
until nc -w 2 "$WAIT_HOST" "$WAIT_PORT" -e true; do
  attempt=$((attempt + 1))
  if [ "$attempt" -ge 150 ]; then
    echo "nobody listens at $WAIT_HOST:$WAIT_PORT"
    exit 1
  fi
  echo "waiting for $WAIT_HOST:$WAIT_PORT"
  sleep 2
done
"""
PROBE = {"initialDelaySeconds": 3, "periodSeconds": 5, "timeoutSeconds": 2}
RESTRICTED: Json = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


class Plain(yaml.SafeDumper):
    """Writes everything out where it stands, without anchors, as upstream's files are."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@cache
def recorded() -> list[Json]:
    """The list of upstream's objects."""
    return [json.loads(line) for line in RECORDED.read_text().splitlines()]


@cache
def details() -> Json:
    """What the list does not say."""
    content: Json = yaml.safe_load(DATA.read_text())
    return content


@cache
def images() -> dict[str, str]:
    """Upstream's images by the last word of their names, also of those that no container names."""
    named = [item["image"] for each in recorded() for item in each.get("containers", [])]
    found = {image.rpartition("/")[2].partition(":")[0]: image for image in named}
    return {**found, **{name: found[other].replace(other, name) for name, other in BESIDE.items()}}


def version() -> str:
    """Version of the recorded manifests, marked as that of a stand-in."""
    return f"{_release()}-standin"


def text() -> str:
    """All objects as YAML documents, always the same bytes.

    Raises:
        LabError: base.yml does not know an object of the list.
    """
    made = [manifest(each) for each in recorded()]
    return yaml.dump_all(made, Dumper=Plain, sort_keys=False, explicit_start=True, width=120)


def manifest(record: Json) -> Json:
    """The object of one line of the list.

    Raises:
        LabError: base.yml does not know what belongs into it.
    """
    kind, name = record["kind"], record["name"]
    metadata: Json = {"name": name}
    if "namespace" in record:
        metadata["namespace"] = record["namespace"]
    if record["from"] != "cluster-scoped-resources":
        metadata["labels"] = dict(LABELS)
    try:
        content = MAKERS[kind](record)
    except KeyError as error:
        raise LabError(f"{DATA.name} has nothing for {kind} {name}: {error}") from error
    metadata.update(content.pop("metadata", {}))
    return {"apiVersion": record["apiVersion"], "kind": kind, "metadata": metadata, **content}


def _release() -> str:
    return images()["kfp-api-server"].rpartition(":")[2]


def _namespace(_: Json) -> Json:
    levels = {"enforce": "baseline", "warn": "restricted"}
    return {"metadata": {"labels": {f"pod-security.kubernetes.io/{mode}": level for mode, level in levels.items()}}}


def _definition(record: Json) -> Json:
    plural, _, group = record["name"].partition(".")
    kind = details()["kinds"][record["name"]]
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        # The API server wants to know who has agreed to definitions under k8s.io.
        **({"metadata": {"annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in"}}} if group.endswith(".k8s.io") else {}),
        "spec": {
            "group": group,
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()},
            "scope": "Cluster" if record["name"] in details()["cluster_scoped"] else "Namespaced",
            "versions": [
                {"name": each, "served": True, "storage": number == 0, "schema": {"openAPIV3Schema": schema}}
                for number, each in enumerate(record["versions"])
            ],
        },
    }  # fmt: skip


def _role(record: Json) -> Json:
    rules = [
        {
            "apiGroups": [rule["group"]],
            "resources": rule["resources"],
            "verbs": rule["verbs"],
            **({"resourceNames": rule["names"]} if "names" in rule else {}),
        }
        for rule in details()["rules"].get(record["name"], [])
    ]
    return {"rules": rules}


def _binding(record: Json) -> Json:
    binding, group = details()["bindings"][record["name"]], "rbac.authorization.k8s.io"
    if "group" in binding:
        subject = {"apiGroup": group, "kind": "Group", "name": binding["group"]}
    else:
        subject = {"kind": "ServiceAccount", "name": binding["account"], "namespace": NAMESPACE}
    kind = record["kind"].removesuffix("Binding")
    return {"roleRef": {"apiGroup": group, "kind": kind, "name": binding["role"]}, "subjects": [subject]}


def _config_map(record: Json) -> Json:
    data = details()["config_maps"][record["name"]]
    return {"data": {key: data[key].replace("{version}", _release()) for key in record["keys"]}}


def _secret(record: Json) -> Json:
    data = details()["secrets"].get(record["name"], {})
    return {"stringData": {key: data.get(key, "") for key in record["keys"]}}


def _service(record: Json) -> Json:
    ports = [
        {key: value for key, value in {**port, "protocol": "TCP"}.items() if value is not None}
        for port in record["ports"]
    ]
    return {"spec": {"ports": ports, "selector": record["selector"]}}


def _claim(record: Json) -> Json:
    return {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": record["size"]}}}}


def _network_policy(record: Json) -> Json:
    selector = {"matchLabels": {"app": record["name"]}}
    ingress = [{"from": [{"podSelector": {}}], "ports": [{"port": 8333}]}]
    return {"spec": {"podSelector": selector, "policyTypes": ["Ingress"], "ingress": ingress}}


def _deployment(record: Json) -> Json:
    name = record["name"]
    detail, selector = details()["deployments"][name], {**details()["selectors"].get(name, {"app": name}), **LABELS}
    group = detail.get("group")
    pod = {
        "serviceAccountName": record["serviceAccount"],
        "priorityClassName": detail.get("priority"),
        "securityContext": {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
            **({"fsGroup": group, "fsGroupChangePolicy": "OnRootMismatch"} if group else {}),
        },
        "initContainers": [_waiting(each) for each in record["initContainers"]],
        "containers": [_container(each, detail, record["volumes"]) for each in record["containers"]],
        "volumes": [{"name": each, **_volume(detail["volumes"][each])} for each in record["volumes"]],
    }
    return {
        "metadata": {"labels": selector},
        "spec": {
            "selector": {"matchLabels": selector},
            **({"strategy": {"type": detail["strategy"]}} if "strategy" in detail else {}),
            "template": {
                "metadata": {"labels": selector},
                "spec": {key: value for key, value in pod.items() if value},
            },
        },
    }


def _container(record: Json, detail: Json, volumes: list[str]) -> Json:
    names = detail.get("ports", [None] * len(record["ports"]))
    ports = [
        {"containerPort": port, **({"name": name} if name else {})}
        for name, port in zip(names, record["ports"], strict=True)
    ]
    user = detail.get("user", 1000)
    owner = {} if user is None else {"runAsUser": user, "runAsGroup": detail.get("group", 0)}
    made = {
        "name": record["name"],
        "image": record["image"],
        "command": detail.get("command"),
        "args": [images()[each["image"]] if isinstance(each, Mapping) else each for each in detail.get("args", [])],
        "env": [{"name": name, **_source(details()["variables"][name])} for name in record["env"]],
        "ports": ports,
        **{name: _probe(probe) for name, probe in detail.get("probes", {}).items()},
        "resources": {"requests": record["requests"]} if record["requests"] else None,
        "securityContext": {
            **RESTRICTED,
            **owner,
            **({"readOnlyRootFilesystem": True} if detail.get("sealed") else {}),
        },
        "volumeMounts": [{"name": each, "mountPath": detail["volumes"][each]["path"]} for each in volumes],
    }
    return {key: value for key, value in made.items() if value}


def _waiting(name: str) -> Json:
    return {
        "name": name,
        "image": WAIT_IMAGE,
        "command": ["/bin/sh", "-ec"],
        "args": [WAIT],
        "env": [{"name": key, **_source(value)} for key, value in details()["waits"][name].items()],
        "resources": {
            "requests": {"cpu": "10m", "memory": "16Mi"},
            "limits": {"cpu": "100m", "memory": "64Mi"},
        },
        "securityContext": {**RESTRICTED, "runAsUser": 1000},
    }


def _source(value: str | Json) -> Json:
    if isinstance(value, str):
        return {"value": value}
    if "image" in value:
        return {"value": images()[value["image"]]}
    if "field" in value:
        return {"valueFrom": {"fieldRef": {"fieldPath": value["field"]}}}
    if "secret" in value:
        return {"valueFrom": {"secretKeyRef": {"name": value["secret"], "key": value["key"]}}}
    optional = {"optional": True} if value.get("optional") else {}
    return {"valueFrom": {"configMapKeyRef": {"name": CONFIG, "key": value["config"], **optional}}}


def _probe(probe: Json) -> Json:
    if "open" in probe:
        return {"tcpSocket": {"port": probe["open"]}, **PROBE}
    failures = {"failureThreshold": probe["failures"]} if "failures" in probe else {}
    return {"httpGet": {"path": probe["path"], "port": probe["port"]}, **PROBE, **failures}


def _volume(volume: Json) -> Json:
    if "token" in volume:
        token = {"audience": AUDIENCE, "expirationSeconds": 3600, "path": volume["token"]}
        return {"projected": {"sources": [{"serviceAccountToken": token}]}}
    source: Json = volume["source"]
    return dict(source)


MAKERS: dict[str, Callable[[Json], Json]] = {
    "Namespace": _namespace,
    "CustomResourceDefinition": _definition,
    "ServiceAccount": lambda _: {},
    "ClusterRole": _role,
    "Role": _role,
    "ClusterRoleBinding": _binding,
    "RoleBinding": _binding,
    "ConfigMap": _config_map,
    "Secret": _secret,
    "Service": _service,
    "PriorityClass": lambda _: {"value": 1000000},
    "PersistentVolumeClaim": _claim,
    "Deployment": _deployment,
    "NetworkPolicy": _network_policy,
}
