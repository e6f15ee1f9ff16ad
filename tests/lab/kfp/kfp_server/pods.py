"""The pod of a task: how it is made, and what can be said of it by its status.

Containers: `init` (ours) fetches the input artifacts and makes folders, `main` is the component's, `wait` (ours) sees main end,
uploads what it left and reports it. All three share the folders that stand for object stores.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from . import pipeline as compiled
from . import placeholders
from .nodes import InputError, Node, Tree, digits
from .values import dump, normal

Json = dict[str, Any]

RUN_LABEL = "pipeline/runid"
# All our pods and no others have it; so have those of the real server.
LABELS = {"pipelines.kubeflow.org/v2_component": "true"}
TASK_ANNOTATION = "pipelines.kubeflow.org/stand-in-task"
RESULTS = "workflowtaskresults"
_REPORT = "report"
LOGS = "executor-logs"
SHARED = {
    "gcs-scratch": "/gcs",
    "s3-scratch": "/s3",
    "minio-scratch": "/minio",
    "dot-local-scratch": "/.local",
    "dot-cache-scratch": "/.cache",
    "dot-config-scratch": "/.config",
    "tmp": "/tmp",
}
_CONTEXT: Json = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
# The launcher of the real server works in the component's container. Ours is beside it, and has to read files of any user.
_OURS: Json = {**_CONTEXT, "runAsUser": 0, "capabilities": {"drop": ["ALL"], "add": ["DAC_OVERRIDE"]}}
_OUR_RESOURCES = {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "256Mi"}}
# States of a container that has not started, by how long they are borne. Missing images and Secrets do not heal by themselves.
_BROKEN = {
    "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError",
    "CreateContainerError", "RunContainerError",
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a pod's status says: `state` is pending, stuck, running, succeeded, failed, or lost (failed, and not by the component).

    `reason` is for people; `broken` tells a stuck pod that nothing but people can help.
    """

    state: str
    reason: str = ""
    broken: bool = False


def name(tree: Tree, node: Node) -> str:
    """The pod's name: the same for the same attempt, whoever asks."""
    number = digits(f"{node.path}/{node.generation}/{node.attempt}")
    return f"{tree.run.workflow}-system-container-impl-{number}"


@dataclass(frozen=True)
class Site:
    """What all pods of a server have in common: the image of our containers, whether logs are kept, and whom components run as."""

    image: str
    publish_logs: bool = True
    run_as: Json = field(default_factory=dict)


def build(tree: Tree, node: Node, site: Site) -> Json:
    """The pod of a container's present attempt. Raises InputError for settings that cannot be resolved."""
    try:
        return _Builder(tree, node, site).pod()
    except (ValueError, KeyError) as error:
        raise InputError(f"the pod cannot be made: {error}") from error


def log_uri(node: Node) -> str:
    """Where the log of the present attempt goes."""
    return f"{node.wanted['root']}/{LOGS}-{node.attempt}"


def claims(tree: Tree, node: Node) -> list[str]:
    """The volume claims that a component mounts."""
    return _Builder(tree, node, Site("")).claims()


class _Builder:
    def __init__(self, tree: Tree, node: Node, site: Site) -> None:
        self._tree = tree
        self._node = node
        self._site = site
        self._wanted = node.wanted
        if site.publish_logs and node.wanted:
            logs = {LOGS: _artifact(LOGS, log_uri(node))}
            self._wanted = {**node.wanted, "artifacts": {**node.wanted["artifacts"], **logs}}
        self._task = tree.task(node)
        self._component = tree.pipeline.component(node.component)
        self._container: Json = tree.pipeline.executor(self._component)["container"]
        self._settings = tree.pipeline.kubernetes(self._component)
        self._volumes: list[Json] = [{"name": volume, "emptyDir": {}} for volume in SHARED]
        self._mounts: list[Json] = [{"name": volume, "mountPath": path} for volume, path in SHARED.items()]

    def claims(self) -> list[str]:
        self._add_volumes()
        found = (volume.get("persistentVolumeClaim", {}).get("claimName") for volume in self._volumes)
        return sorted({claim for claim in found if claim})

    def pod(self) -> Json:
        tree, node = self._tree, self._node
        main = self._main()
        self._add_volumes()
        ours = self._our_containers(main["env"])
        metadata = self._settings.get("podMetadata", {})
        spec: Json = {
            "serviceAccountName": tree.run.service_account,
            "restartPolicy": "Never",
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "initContainers": [ours[0], *self._settings_containers()],
            "containers": [main, ours[1]],
            "volumes": self._volumes,
            "nodeSelector": self._node_selector(),
            "tolerations": self._tolerations(),
            "affinity": self._affinity(),
            "imagePullSecrets": [{"name": name} for name in self._names("imagePullSecret", "secretName")],
        }
        if deadline := int(self._settings.get("activeDeadlineSeconds", 0)):
            spec["activeDeadlineSeconds"] = deadline
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name(tree, node),
                "labels": {**metadata.get("labels", {}), **LABELS, RUN_LABEL: tree.run.run_id},
                "annotations": {
                    **metadata.get("annotations", {}),
                    **LABELS,
                    "pipelines.kubeflow.org/runtime-role": "launcher",
                    "workflows.argoproj.io/node-name": self._argo_name(),
                    TASK_ANNOTATION: node.path,
                },
            },
            "spec": {key: value for key, value in spec.items() if value not in ({}, [])},
        }

    def _argo_name(self) -> str:
        """The name that Argo has for such a task."""
        tasks = [part.split("(")[0] for part in self._node.path.split(".")]
        above = ".".join(f"{task}(0)" for task in tasks)
        return f"{self._tree.run.workflow}(0).{above}.executor({self._node.attempt})"

    def _main(self) -> Json:
        values: Json = self._node.inputs["parameters"]
        definitions = compiled.parameters(self._component, "input")
        defaults = {key: value["defaultValue"] for key, value in definitions.items() if "defaultValue" in value}
        arguments = [*self._container.get("command", []), *self._container.get("args", [])]
        command = placeholders.resolve(arguments, self._node.inputs, defaults, self._wanted)
        if not command:
            # The launcher needs a program to run: the image's own entry point never counts.
            raise ValueError("the component has neither command nor args")
        main = {
            "name": "main",
            "image": placeholders.parameter(self._container.get("image", ""), values),
            "command": command[:1],
            "args": command[1:],
            "env": self._environment(),
            "envFrom": [{"configMapRef": {"name": "metadata-grpc-configmap", "optional": True}}],
            "resources": self._resources(values),
            "securityContext": self._security(),
            "volumeMounts": self._mounts,
        }
        if policy := self._settings.get("imagePullPolicy"):
            if policy not in ("Always", "Never", "IfNotPresent"):
                raise ValueError(
                    f"unsupported value: {policy}. ImagePullPolicy should be one of Always, Never or IfNotPresent"
                )
            main["imagePullPolicy"] = policy
        return main

    def _our_containers(self, environment: list[Json]) -> tuple[Json, Json]:
        node = self._node
        outputs = compiled.parameters(self._component, "output")
        orders = {
            "inputs": [artifact for listed in node.inputs["artifacts"].values() for artifact in listed],
            "parameters": {
                parameter: {"file": file, "type": outputs[parameter].get("parameterType", "")}
                for parameter, file in node.wanted["parameters"].items()
            },
            "artifacts": self._wanted["artifacts"],
            "file": node.wanted["file"],
            "folder": node.wanted["root"],
            "root": self._tree.run.engine["root"],
            "session": self._tree.run.engine["session"],
        }
        given = [
            *_POD_NAMES,
            {"name": "KFP_TASK", "value": dump(orders).replace("$", "$$")},
            # Stores without a configuration of their own are used by what the task's environment says, as in the real launcher.
            *(entry for entry in environment if entry["name"].startswith("AWS_")),
        ]

        def container(part: str) -> Json:
            return {
                "name": part,
                "image": self._site.image,
                "command": ["python3", "-m", "kfp_server", "io", part],
                "env": given,
                "resources": _OUR_RESOURCES,
                "securityContext": self._our_security(),
                "volumeMounts": [{"name": volume, "mountPath": path} for volume, path in SHARED.items()],
                "terminationMessagePolicy": "FallbackToLogsOnError",
            }

        return container("init"), container("wait")

    def _environment(self) -> list[Json]:
        environment: list[Json] = [*_POD_NAMES]
        if "retryPolicy" in self._task:
            environment.append({"name": "KFP_RETRY_INDEX", "value": str(self._node.attempt)})
        environment += [
            {"name": entry["name"], "value": entry.get("value", "")} for entry in self._container.get("env", [])
        ]
        for setting, reference, key in (
            ("secretAsEnv", "secretKeyRef", "secret"),
            ("configMapAsEnv", "configMapKeyRef", "configMap"),
        ):
            for entry in self._settings.get(setting, []):
                source = self._name(entry, f"{key}Name")
                optional = {"optional": entry["optional"]} if "optional" in entry else {}
                for pair in entry.get("keyToEnv", []) if source is not None else []:
                    selector = {"name": source, "key": pair[f"{key}Key"], **optional}
                    environment.append({"name": pair["envVar"], "valueFrom": {reference: selector}})
        for entry in self._settings.get("fieldPathAsEnv", []):
            environment.append({"name": entry["name"], "valueFrom": {"fieldRef": {"fieldPath": entry["fieldPath"]}}})
        return environment

    def _resources(self, values: Json) -> Json:
        resources: Json = {"limits": {}, "requests": {}}
        given = self._container.get("resources", {})
        for kind, side, resource, suffix in (
            ("Memory", "Limit", "memory", "G"),
            ("Memory", "Request", "memory", "G"),
            ("Cpu", "Limit", "cpu", ""),
            ("Cpu", "Request", "cpu", ""),
        ):
            quantity = given.get(f"resource{kind}{side}")
            if quantity:
                quantity = placeholders.parameter(quantity, values)
            elif given.get(f"{resource}{side}"):
                quantity = f"{normal(given[f'{resource}{side}'])}{suffix}"
            if quantity:
                resources[f"{side.lower()}s"][resource] = quantity
        accelerator = given.get("accelerator", {})
        resource = placeholders.parameter(accelerator.get("resourceType") or accelerator.get("type", ""), values)
        count = placeholders.parameter(str(accelerator.get("resourceCount") or accelerator.get("count", "")), values)
        if resource and count not in ("", "0"):
            resources["limits"][resource] = count
        # What has a limit only is requested as well: Kubernetes does that, and the pods of the real server show it.
        resources["requests"] = {**resources["limits"], **resources["requests"]}
        return {side: quantities for side, quantities in resources.items() if quantities}

    def _security(self) -> Json:
        given = self._settings.get("securityContext", {})
        numbers = {key: int(given[key]) for key in ("runAsUser", "runAsGroup") if key in given}
        if numbers.get("runAsUser") == 0 and given.get("runAsNonRoot"):
            raise ValueError("runAsUser=0 (root) is not allowed: runAsNonRoot is true")
        non_root = {"runAsNonRoot": given["runAsNonRoot"]} if "runAsNonRoot" in given else {}
        # What the administrator set counts more.
        return {**_CONTEXT, **numbers, **non_root, **self._site.run_as}

    def _our_security(self) -> Json:
        if not self._site.run_as.get("runAsNonRoot"):
            return _OURS
        # Nobody may be root: then we are who the component is, as far as that is said.
        user = {key: value for key, value in self._security().items() if key in ("runAsUser", "runAsGroup")}
        return {**_CONTEXT, "runAsNonRoot": True, **user}

    def _add_volumes(self) -> None:
        def add(volume: str, source: Json, path: str, **more: str) -> None:
            if all(other["name"] != volume for other in self._volumes):
                self._volumes.append({"name": volume, **source})
            self._mounts.append(
                {"name": volume, "mountPath": path, **{key: value for key, value in more.items() if value}}
            )

        for entry in self._settings.get("pvcMount", []):
            claim = self._value(entry.get("pvcNameParameter") or _old_source(entry))
            if not isinstance(claim, str) or not claim or not entry.get("mountPath"):
                raise ValueError("failed to mount volume, missing mountpath or pvc name")
            add(
                claim,
                {"persistentVolumeClaim": {"claimName": claim}},
                entry["mountPath"],
                subPath=entry.get("subPath", ""),
            )
        for setting, key, label in (
            ("secretAsVolume", "secret", "secretName"),
            ("configMapAsVolume", "configMap", "name"),
        ):
            for entry in self._settings.get(setting, []):
                source = self._name(entry, f"{key}Name")
                if source is not None:
                    optional = bool(entry.get("optional", False))
                    add(source, {key: {label: source, "optional": optional}}, entry["mountPath"])
        for entry in self._settings.get("emptyDirMounts", []):
            limits = {"medium": entry.get("medium"), "sizeLimit": entry.get("sizeLimit")}
            empty = {key: value for key, value in limits.items() if value}
            add(entry["volumeName"], {"emptyDir": empty}, entry["mountPath"])
        for entry in self._settings.get("genericEphemeralVolume", []):
            claim_spec: Json = {
                "accessModes": entry.get("accessModes", []),
                "resources": {"requests": {"storage": entry["size"]}},
            }
            if not entry.get("defaultStorageClass"):
                claim_spec["storageClassName"] = entry.get("storageClassName", "")
            template = {"metadata": entry.get("metadata", {}), "spec": claim_spec}
            add(entry["volumeName"], {"ephemeral": {"volumeClaimTemplate": template}}, entry["mountPath"])

    def _settings_containers(self) -> list[Json]:
        containers = []
        for entry in self._settings.get("initContainers", []):
            mounts = [{"name": m["volumeName"], "mountPath": m["mountPath"]} for m in entry.get("volumeMounts", [])]
            known = ("name", "image", "command", "args", "env", "resources", "restartPolicy")
            given = {key: entry[key] for key in known if key in entry}
            containers.append({**given, "volumeMounts": mounts, "securityContext": _CONTEXT})
        return containers

    def _node_selector(self) -> Json:
        given = self._settings.get("nodeSelector", {})
        if "nodeSelectorJson" in given:
            found: Json = self._value(given["nodeSelectorJson"]) or {}
            return found
        labels: Json = given.get("labels", {})
        return labels

    def _tolerations(self) -> list[Json]:
        tolerations: list[Json] = []
        for entry in self._settings.get("tolerations", []):
            if "tolerationJson" in entry:
                value = self._value(entry["tolerationJson"])
                tolerations += value if isinstance(value, list) else [value] if value else []
            else:
                tolerations.append(entry)
        return [_with_number(toleration, "tolerationSeconds") for toleration in tolerations]

    def _affinity(self) -> Json:
        required: list[Json] = []
        preferred: list[Json] = []
        for entry in self._settings.get("nodeAffinity", []):
            if "nodeAffinityJson" in entry:
                given = self._value(entry["nodeAffinityJson"]) or {}
                required += given.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
                preferred += given.get("preferredDuringSchedulingIgnoredDuringExecution", [])
                continue
            term = {key: entry[key] for key in ("matchExpressions", "matchFields") if entry.get(key)}
            if "weight" in entry:
                preferred.append({"weight": int(entry["weight"]), "preference": term})
            elif term:
                required.append(term)
        rules: Json = {}
        if required:
            rules["requiredDuringSchedulingIgnoredDuringExecution"] = {"nodeSelectorTerms": required}
        if preferred:
            rules["preferredDuringSchedulingIgnoredDuringExecution"] = preferred
        return {"nodeAffinity": rules} if rules else {}

    def _names(self, setting: str, key: str) -> list[str]:
        found = (self._name(entry, key) for entry in self._settings.get(setting, []))
        return [name for name in found if name is not None]

    def _name(self, entry: Json, key: str) -> str | None:
        """The name of a Secret or ConfigMap; None where an optional parameter that should give it has no value."""
        source = entry.get(f"{key}Parameter")
        found = self._value(source) if source else entry.get(key)
        if found is None and source:
            return None
        if not isinstance(found, str) or not found:
            raise ValueError(f"missing either {key} or {key}Parameter in executor config")
        return found

    def _value(self, source: Json) -> Any:
        return self._tree.value(self._tree.scope(self._node), self._node.name, self._task, source)


def provision(root: str, component: Json) -> Json:
    """Where the outputs of a component go: artifacts below a folder of the object store, parameters into files."""
    local = placeholders.local_path(root)
    return {
        "root": root,
        "parameters": {name: f"/tmp/kfp/outputs/{name}" for name in compiled.parameters(component, "output")},
        "artifacts": {
            name: _artifact(name, f"{root}/{name}", definition)
            for name, definition in compiled.artifacts(component, "output").items()
        },
        "file": f"{local}/output_metadata.json" if local else "/tmp/kfp_outputs/output_metadata.json",
    }


def _artifact(name: str, uri: str, definition: Json | None = None) -> Json:
    schema = (definition or {}).get("artifactType", {"schemaTitle": "system.Artifact"})
    metadata = {"metadata": definition["metadata"]} if definition and definition.get("metadata") else {}
    return {"name": name, "uri": uri, "type": schema, **metadata}


_POD_NAMES: list[Json] = [
    {"name": "KFP_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    {"name": "KFP_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
]


def _old_source(entry: Json) -> Json:
    """The claim of a mount as older compilers name it."""
    if "constant" in entry:
        return {"runtimeValue": {"constant": entry["constant"]}}
    return {key: entry[key] for key in ("taskOutputParameter", "componentInputParameter") if key in entry}


def _with_number(entry: Json, key: str) -> Json:
    """A setting with its 64 bit number as a number: in the JSON of protobuf it is a text."""
    return {**entry, key: int(entry[key])} if key in entry else entry


def outcome(pod: Json) -> Outcome:
    """What a pod's status says of the attempt."""
    status = pod.get("status", {})
    phase = status.get("phase", "Pending")
    if phase == "Succeeded":
        return Outcome("succeeded")
    if pod["metadata"].get("deletionTimestamp"):
        # It may still run. That it is gone, or refuses to go, is told by the list of pods.
        return Outcome("running", "the pod is being deleted")
    if phase == "Failed":
        return Outcome("failed", _failure(status))
    if phase == "Running" or "running" in _state(status, "init"):
        return Outcome("running")
    return _waiting(status)


def result(pod: str, uid: str, report: Json) -> Json:
    """The object in which `wait` reports outputs, as Argo's does; it goes with its pod."""
    owner = {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "WorkflowTaskResult",
        "metadata": {"name": pod, "ownerReferences": [owner]},
        "outputs": {"parameters": [{"name": _REPORT, "value": dump(report)}]},
    }


def report(found: Json) -> Json:
    """What such an object tells of the outputs."""
    value: Json = json.loads(found["outputs"]["parameters"][0]["value"])
    return value


def finished_at(pod: Json) -> float:
    """When the last container of a pod ended; 0 if none did."""
    ends = [
        state["terminated"].get("finishedAt") or ""
        for container in pod.get("status", {}).get("containerStatuses", [])
        if "terminated" in (state := container.get("state", {}))
    ]
    return max((seconds(end) for end in ends if end), default=0.0)


def seconds(timestamp: str) -> float:
    """A time as Kubernetes writes it, in seconds."""
    return datetime.fromisoformat(timestamp).timestamp()


def main_failed(pod: Json) -> bool:
    """Whether the component itself ended badly: its log says why, and nothing else has to."""
    ended = _state(pod.get("status", {}), "main").get("terminated", {})
    return bool(ended.get("exitCode", 0)) and not pod.get("status", {}).get("reason")


def _state(status: Json, container: str) -> Json:
    for listed in (*status.get("containerStatuses", []), *status.get("initContainerStatuses", [])):
        if listed["name"] == container:
            state: Json = listed.get("state", {})
            return state
    return {}


def _failure(status: Json) -> str:
    """Why a pod failed: the node's word, else that of the first container that ended badly."""
    if status.get("reason") or status.get("message"):
        return ": ".join(part for part in (status.get("reason"), status.get("message")) if part)
    order: Callable[[Json], bool] = lambda container: container["name"] != "main"  # noqa: E731
    containers = [*status.get("initContainerStatuses", []), *sorted(status.get("containerStatuses", []), key=order)]
    for container in containers:
        ended = container.get("state", {}).get("terminated", {})
        if ended.get("exitCode", 0):
            said = (ended.get("message") or "").strip()
            head = f"{container['name']}: {ended.get('reason', 'Error')} (exit code {ended['exitCode']})"
            return f"{head}: {said}" if said else head
    return "the pod failed, and its containers do not say why"


def _waiting(status: Json) -> Outcome:
    for condition in status.get("conditions", []):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return Outcome("stuck", f"{condition.get('reason')}: {condition.get('message', '')}")
    for container in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") in _BROKEN:
            message = f"{container['name']}: {waiting['reason']}: {waiting.get('message', '')}"
            return Outcome("stuck", message, broken=True)
    return Outcome("pending")
