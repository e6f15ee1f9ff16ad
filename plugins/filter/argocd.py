"""Filters for the role argocd: what it is given, who may do what, and the objects that take applications from Git into the cluster."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]

API = "argoproj.io/v1alpha1"
CLUSTER = "https://kubernetes.default.svc"
# The last word of a namespace's name is its environment, so an environment is one word.
_ENVIRONMENT = re.compile(r"[a-z][a-z0-9]{0,14}")
_ENVIRONMENT_KEYS = {"name", "approval", "pod_security"}
LEVELS = ("privileged", "baseline", "restricted")
DEFAULT_LEVEL = "restricted"
# Who may do what, by the role's name in argocd_rbac. Rollback is a commit, so nobody needs `override`.
ROLES = {
    "admin": ("role:admin", []),
    "operator": (
        "role:operator",
        [
            "g, role:operator, role:readonly",
            "p, role:operator, applications, sync, models-*/*, allow",
            "p, role:operator, applications, action/*, models-*/*, allow",
        ],
    ),
    "viewer": ("role:readonly", []),
}
# Kind, name and containers (those of preparation last) of what may run, by its name in argocd_resources.
WORKLOADS: dict[str, tuple[str, str, Sequence[str], Sequence[str]]] = {
    "controller": ("StatefulSet", "argocd-application-controller", ["argocd-application-controller"], []),
    "applicationset": ("Deployment", "argocd-applicationset-controller", ["argocd-applicationset-controller"], []),
    "server": ("Deployment", "argocd-server", ["argocd-server"], []),
    "repo_server": ("Deployment", "argocd-repo-server", ["argocd-repo-server"], ["copyutil"]),
    "redis": ("Deployment", "argocd-redis", ["redis"], []),
    "dex": ("Deployment", "argocd-dex-server", ["dex"], ["copyutil"]),
    "notifications": ("Deployment", "argocd-notifications-controller", ["argocd-notifications-controller"], []),
}
# Upstream looks every 10 or 30 seconds whether they are ready, and everybody waits for that.
PROBED = ("controller", "server", "repo_server")
# Upstream's images by our names; the bundle need not hold that of Dex.
IMAGES = {
    "argocd": "quay.io/argoproj/argocd",
    "argocd_redis": "public.ecr.aws/docker/library/redis",
    "argocd_dex": "ghcr.io/dexidp/dex",
}
_REMOVAL = {"$patch": "delete", "apiVersion": "any/v1", "kind": "Any", "metadata": {"name": "any"}}
# Upstream gives the password as an argument, which every process of the node can read, and lets the pod make it.
_REDIS: Json = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "argocd-redis"},
    "spec": {
        "template": {
            "spec": {
                "automountServiceAccountToken": False,
                "initContainers": [{"name": "secret-init", "$patch": "delete"}],
                "containers": [
                    {
                        "name": "redis",
                        "command": [
                            "/bin/sh",
                            "-c",
                            'exec redis-server - <<END\nrequirepass $REDIS_PASSWORD\nsave ""\nappendonly no\nEND\n',
                        ],
                        "args": [],
                    }
                ],
            }
        }
    },
}
# What an application in Git may not bring although it stays in its namespace: limits that others have set for it, rights on
# the API, and what Traefik takes for all sites. A NetworkPolicy can only narrow who reaches the application: the namespace has no other.
REFUSED_KINDS = (
    ("", "ResourceQuota"),
    ("", "LimitRange"),
    ("rbac.authorization.k8s.io", "Role"),
    ("rbac.authorization.k8s.io", "RoleBinding"),
    ("traefik.io", "TLSStore"),
    ("traefik.io", "TLSOption"),
    # Their rules are a language of their own, in which nobody can tell whose hosts they catch; there is Ingress.
    ("traefik.io", "IngressRoute"),
    ("traefik.io", "IngressRouteTCP"),
    ("traefik.io", "IngressRouteUDP"),
)
# A sync that fails is tried again with what Git holds by then.
RETRY = {"limit": 5, "refresh": True, "backoff": {"duration": "5s", "factor": 2, "maxDuration": "2m"}}
AUTOMATED = {"prune": True, "selfHeal": True}
# The controller writes it, empty as it is, when a push has made it look again; without it here each run would take it away.
_NO_TEMPLATE: Json = {"metadata": {}, "spec": {"destination": {}, "project": ""}}
_COMMIT = "^[0-9a-f]{40}$"


def argocd_faults(options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the options of the role argocd, one line each: option, key and remedy.

    `options` holds those of the role by their names, and `provider` and `components`.
    """
    faults: list[str] = []
    if options["provider"] == "embedded" and "git" not in options["components"]:
        faults.append(
            "slipway_components: argocd takes applications from the Git service, but git is not listed; "
            "add it before argocd, or set git_provider to external"
        )
    elif "git" in options["components"] and options["components"].index("git") > options["components"].index("argocd"):
        faults.append("slipway_components: git must come before argocd, which takes its credentials from there")
    faults += _environment_faults(options["argocd_environments"])
    faults += _rbac_faults(options["argocd_rbac"])
    for name in sorted(set(options["argocd_resources"]) - set(WORKLOADS)):
        faults.append(f"argocd_resources: {name}: unknown; there are {', '.join(sorted(WORKLOADS))}")
    for index, patch in enumerate(options["argocd_patches"]):
        if not isinstance(patch, Mapping) or not set(patch) <= {"patch", "target", "options"} or "patch" not in patch:
            faults.append(
                f"argocd_patches[{index}]: needs patch, may have target and options, as in a kustomization.yaml"
            )
    for index, kind in enumerate(options["argocd_platform_kinds"]):
        if not isinstance(kind, Mapping) or set(kind) != {"group", "kind"}:
            faults.append(f"argocd_platform_kinds[{index}]: needs group and kind")
    oidc = options["argocd_oidc"]
    faults += [f"argocd_oidc: {key} is missing" for key in ("name", "issuer", "clientID") if oidc and not oidc.get(key)]
    if oidc.get("clientSecret") and not str(oidc["clientSecret"]).startswith("$"):
        faults.append(
            "argocd_oidc: clientSecret is written out; put it into a Secret of the namespace argocd with the label "
            "app.kubernetes.io/part-of=argocd and name that: $<Secret>:<key>"
        )
    if oidc and options["argocd_dex"]:
        faults.append("argocd_oidc and argocd_dex: only one of them can log people in")
    if options["argocd_sync_interval"] < 10:
        faults.append(f"argocd_sync_interval: {options['argocd_sync_interval']} is less than 10 seconds")
    return faults


def _environment_faults(environments: Sequence[Any]) -> list[str]:
    faults: list[str] = []
    names = [item.get("name") for item in environments if isinstance(item, Mapping)]
    for index, item in enumerate(environments):
        where = f"argocd_environments[{index}]"
        if not isinstance(item, Mapping):
            faults.append(f"{where}: {item!r} is no mapping")
            continue
        name = item.get("name")
        if not isinstance(name, str) or not _ENVIRONMENT.fullmatch(name):
            faults.append(f"{where}: name: {name!r} is not one word of at most 15 lower-case letters and digits")
        elif name == "base":
            faults.append(f"{where}: name: base is the folder for what environments share")
        elif names.index(name) < index:
            faults.append(f"{where}: name: {name} is given twice")
        faults += [f"{where}: {key}: unknown" for key in sorted(set(item) - _ENVIRONMENT_KEYS)]
        if not isinstance(item.get("approval", False), bool):
            faults.append(f"{where}: approval: {item['approval']!r} is neither true nor false")
        if item.get("pod_security", DEFAULT_LEVEL) not in LEVELS:
            faults.append(f"{where}: pod_security: {item['pod_security']!r} is none of {', '.join(LEVELS)}")
    return faults


def _rbac_faults(rbac: Mapping[str, Any]) -> list[str]:
    faults: list[str] = []
    for role, subjects in rbac.items():
        if role not in ROLES:
            faults.append(f"argocd_rbac: {role}: unknown role; there are {', '.join(ROLES)}")
        elif not isinstance(subjects, Sequence) or isinstance(subjects, str) or not subjects:
            faults.append(f"argocd_rbac: {role}: needs a list of users or groups")
        else:
            faults += [
                f"argocd_rbac: {role}: {subject!r} is no name of a user or group"
                for subject in subjects
                if not isinstance(subject, str) or not subject.strip() or set(subject) & set('"\n\r')
            ]
    return faults


def argocd_policy(rbac: Mapping[str, Sequence[str]]) -> str:
    """The policy.csv that gives users and groups (`rbac`: by role) their rights."""
    lines = [line for _, rights in ROLES.values() for line in rights]
    # Names of groups may hold commas.
    lines += [f'g, "{subject}", {ROLES[role][0]}' for role in ROLES for subject in rbac.get(role, [])]
    return "\n".join(lines) + "\n"


def argocd_overlay(
    images: Mapping[str, str],
    namespace: str,
    config_maps: Mapping[str, Mapping[str, str]],
    resources: Mapping[str, Any],
    annotations: Mapping[str, Mapping[str, str]],
    patches: Sequence[Mapping[str, Any]],
) -> Json:
    """The kustomization that makes upstream's manifests ours.

    Args:
        images: references by their names in the bundle.
        namespace: where everything goes.
        config_maps: what ConfigMaps get, by their names.
        resources: requests and limits of what may run; Dex and the notifications controller are removed if they are not there.
        annotations: of the pods, by names as in `resources`, or `all`. Who changes them restarts the pods.
        patches: those of the user, which come last.
    """
    removed: list[Json] = [
        # Upstream's let everybody in; the flows of the namespace take their place.
        {"kind": "NetworkPolicy"},
        # The password of Redis is made by the role, so nothing here may make Secrets.
        {"kind": "Role", "name": "argocd-redis"},
        {"kind": "RoleBinding", "name": "argocd-redis"},
    ]
    for name, component in (("dex", "dex-server"), ("notifications", "notifications-controller")):
        if name not in resources:
            removed.append({"labelSelector": f"app.kubernetes.io/component={component}"})
    return {
        "namespace": namespace,
        "images": [_image(images[name], of) for name, of in IMAGES.items() if name in images],
        "patches": [
            *({"target": target, "patch": json.dumps(_REMOVAL)} for target in removed),
            _patch(_REDIS),
            *(
                _patch({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": dict(data)})
                for name, data in config_maps.items()
            ),
            *(_workload(name, wanted, annotations) for name, wanted in resources.items()),
            *patches,
        ],
    }


def _image(reference: str, of: str) -> Json:
    """What takes the place of upstream's image `of`."""
    head, _, digest = reference.partition("@")
    repository, colon, tag = head.rpartition(":")
    # A colon before a slash is that of a port.
    if not colon or "/" in tag:
        repository, tag = head, ""
    return {
        "name": of,
        "newName": repository,
        **({"newTag": tag} if tag else {}),
        **({"digest": digest} if digest else {}),
    }


def _workload(name: str, resources: Any, annotations: Mapping[str, Mapping[str, str]]) -> Json:
    kind, full, containers, preparing = WORKLOADS[name]

    def settings(names: Sequence[str]) -> list[Json]:
        return [{"name": each, "imagePullPolicy": "IfNotPresent", "resources": resources} for each in names]

    running = settings(containers)
    if name in PROBED:
        running[0]["readinessProbe"] = {"initialDelaySeconds": 1, "periodSeconds": 2}

    template: Json = {
        "metadata": {"annotations": {**annotations["all"], **annotations.get(name, {})}},
        "spec": {"containers": running},
    }
    if preparing:
        template["spec"]["initContainers"] = settings(preparing)
    return _patch({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": full}, "spec": {"template": template}})


def _patch(content: Json) -> Json:
    return {"patch": json.dumps(content, sort_keys=True)}


def argocd_objects(
    environments: Sequence[Mapping[str, Any]],
    namespace: str,
    url: str,
    interval: int,
    kinds: Sequence[Mapping[str, str]],
    sources: Sequence[str],
    guarded: Sequence[str],
    hosts: Sequence[str],
) -> list[Json]:
    """Projects, ApplicationSets, the Application `platform`, and what Argo CD may do with namespaces and names of the site.

    Args:
        environments: where applications run; each has `name`, may have `approval` and `pod_security`.
        namespace: that of Argo CD.
        url: the repository.
        interval: seconds between two looks into it, where no webhook tells.
        kinds: what platform/ may bring that belongs to no namespace: `group` and `kind`.
        sources: further repositories that platform/ may take applications from.
        guarded: namespaces that no application of platform/ may deploy to.
        hosts: names of the site that no application may answer at.
    """
    made = [
        # Argo CD makes it, and makes it allow everything.
        _project(namespace, "default", "Nothing: each application names a project of its own", [], [], [], []),
        _project(
            namespace,
            "platform-applications",
            "The Applications that platform/ lists",
            [url],
            [namespace],
            [],
            [],
            [{"group": "argoproj.io", "kind": "Application"}],
        ),
        _project(
            namespace,
            "platform",
            "What the Applications of platform/ deploy",
            [url, *sources],
            [*(f"!{name}" for name in guarded), *(f"!*-{item['name']}" for item in environments), "*"],
            list(kinds),
            [],
        ),
    ]
    refused = [{"group": group, "kind": kind} for group, kind in REFUSED_KINDS]
    for environment in environments:
        made.append(
            _project(
                namespace,
                f"models-{environment['name']}",
                f"Applications in {environment['name']}",
                [url],
                [f"*-{environment['name']}"],
                # Argo CD makes each application's namespace by the rights of its project. The admission policy keeps it to those.
                [{"group": "", "kind": "Namespace"}],
                refused,
            )
        )
    made += [_application_set(namespace, environment, url, interval) for environment in environments]
    made.append(_platform(namespace, url))
    return [*made, *_namespace_guard(namespace, environments), *_host_guard(namespace, hosts)]


def _project(
    namespace: str,
    name: str,
    description: str,
    sources: Sequence[str],
    destinations: Sequence[str],
    cluster_kinds: Sequence[Mapping[str, str]],
    refused: Sequence[Mapping[str, str]],
    only: Sequence[Mapping[str, str]] = (),
) -> Json:
    spec: Json = {
        "description": description,
        "sourceRepos": list(sources),
        "destinations": [{"server": CLUSTER, "namespace": each} for each in destinations],
        "clusterResourceWhitelist": list(cluster_kinds),
        "namespaceResourceBlacklist": list(refused),
    }
    if only:
        spec["namespaceResourceWhitelist"] = list(only)
    return {"apiVersion": API, "kind": "AppProject", "metadata": {"name": name, "namespace": namespace}, "spec": spec}


def _sync_policy(options: Sequence[str]) -> Json:
    return {"automated": dict(AUTOMATED), "retry": RETRY, "syncOptions": ["ServerSideApply=true", *options]}


def _application_set(namespace: str, environment: Mapping[str, Any], url: str, interval: int) -> Json:
    name = environment["name"]
    generator: Json = {"repoURL": url, "revision": "main", "requeueAfterSeconds": interval, "template": _NO_TEMPLATE}
    annotations: Json = {}
    if environment.get("approval"):
        generator["files"] = [{"path": f"approvals/{name}/*.yml"}]
        application = '{{ .path.filename | trimSuffix ".yml" }}'
        # A file without a commit must not stop the others, and a branch is no commit: this revision does not exist and says where to look.
        revision = (
            f'{{{{ $revision := get . "revision" | toString }}}}{{{{ if regexMatch "{_COMMIT}" $revision }}}}{{{{ $revision }}}}'
            f"{{{{ else }}}}no-commit-in-approvals/{name}/{{{{ .path.filename }}}}{{{{ end }}}}"
        )
        annotations = {
            "annotations": {
                "slipway/approved-by": '{{ get . "approvedBy" | toString }}',
                "slipway/reason": '{{ get . "reason" | toString }}',
            }
        }
    else:
        generator["directories"] = [{"path": f"apps/*/{name}"}]
        application = "{{ index .path.segments 1 }}"
        revision = "main"
    labels = {"slipway/application": application, "slipway/environment": name}
    level = environment.get("pod_security", DEFAULT_LEVEL)
    return {
        "apiVersion": API,
        "kind": "ApplicationSet",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "goTemplate": True,
            "goTemplateOptions": ["missingkey=error"],
            "generators": [{"git": generator}],
            # What runs outlives its Application, and so this set, this namespace and a folder that somebody moved.
            "syncPolicy": {"preserveResourcesOnDeletion": True},
            "template": {
                "metadata": {"name": f"{application}-{name}", "labels": labels, **annotations},
                "spec": {
                    "project": f"models-{name}",
                    "source": {"repoURL": url, "targetRevision": revision, "path": f"apps/{application}/{name}"},
                    "destination": {"server": CLUSTER, "namespace": f"{application}-{name}"},
                    "syncPolicy": {
                        **_sync_policy(["CreateNamespace=true"]),
                        "managedNamespaceMetadata": {
                            "labels": {
                                **labels,
                                "pod-security.kubernetes.io/enforce": level,
                                "pod-security.kubernetes.io/warn": "restricted",
                            }
                        },
                    },
                },
            },
        },
    }


def _platform(namespace: str, url: str) -> Json:
    policy = _sync_policy([])
    policy["automated"]["allowEmpty"] = True
    return {
        "apiVersion": API,
        "kind": "Application",
        "metadata": {"name": "platform", "namespace": namespace},
        "spec": {
            "project": "platform-applications",
            "source": {"repoURL": url, "targetRevision": "main", "path": "platform"},
            "destination": {"server": CLUSTER, "namespace": namespace},
            "syncPolicy": policy,
        },
    }


def _namespace_guard(namespace: str, environments: Sequence[Mapping[str, Any]]) -> list[Json]:
    """What no project can say: which namespaces Argo CD may make, with which labels, and that it removes none of an application.

    A project that lets Argo CD make namespaces lets a commit bring any Namespace, and its removal remove one with all that is in it.
    """
    levels = ", ".join(f"'{item['name']}': '{item.get('pod_security', DEFAULT_LEVEL)}'" for item in environments)
    label = "'pod-security.kubernetes.io/enforce'"
    rule = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE", "DELETE"],
        "resources": ["namespaces"],
        "scope": "Cluster",
    }
    variables = {
        "levels": f"{{{levels}}}",
        "word": "request.name.split('-')[size(request.name.split('-')) - 1]",
        "ours": "request.name == 'default' || request.name.startsWith('kube-') || (oldObject != null && "
        "has(oldObject.metadata.labels) && 'app.kubernetes.io/managed-by' in oldObject.metadata.labels && "
        "oldObject.metadata.labels['app.kubernetes.io/managed-by'] == 'slipway')",
    }
    validations = {
        "!variables.ours": "'namespace ' + request.name + ' belongs to the platform, not to an application in Git'",
        "!(variables.word in variables.levels) || (request.operation != 'DELETE' && "
        f"has(object.metadata.labels) && {label} in object.metadata.labels && "
        f"object.metadata.labels[{label}] == variables.levels[variables.word])": "'namespace ' + request.name + "
        "' of an environment: Argo CD may not remove it, and its label "
        "pod-security.kubernetes.io/enforce must be ' + variables.levels[variables.word]",
    }
    return _guard(namespace, "namespaces", rule, variables, validations)


def _host_guard(namespace: str, hosts: Sequence[str]) -> list[Json]:
    """No application may answer where people give the platform their passwords: at its names, or at all names."""
    rule = {
        "apiGroups": ["networking.k8s.io"],
        "apiVersions": ["v1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": ["ingresses"],
        "scope": "Namespaced",
    }
    variables = {"hosts": json.dumps(list(hosts))}
    own = (
        "!has(object.spec.defaultBackend) && (!has(object.spec.rules) || object.spec.rules.all(rule, "
        "has(rule.host) && rule.host != '' && !rule.host.startsWith('*') && !(rule.host in variables.hosts)))"
    )
    said = "'Ingress ' + request.name + ': an application needs a host of its own, not one of the platform: ' + variables.hosts.join(', ')"
    return _guard(namespace, "hosts", rule, variables, {own: said})


def _guard(
    namespace: str, what: str, rule: Json, variables: Mapping[str, str], validations: Mapping[str, str]
) -> list[Json]:
    """An admission policy for what Argo CD itself asks of the API.

    Args:
        namespace: that of Argo CD.
        what: the last word of its name.
        rule: which requests are judged.
        variables: expressions (CEL) by name.
        validations: what must hold, and the expression of the message where it does not.
    """
    name = f"slipway-{namespace}-{what}"
    accounts = f"request.userInfo.username.startsWith('system:serviceaccount:{namespace}:')"
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [rule], "matchPolicy": "Equivalent"},
            "matchConditions": [{"name": "argocd", "expression": accounts}],
            "variables": [{"name": key, "expression": value} for key, value in variables.items()],
            "validations": [{"expression": key, "messageExpression": value} for key, value in validations.items()],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    }
    return [policy, binding]


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "argocd_faults": argocd_faults,
            "argocd_policy": argocd_policy,
            "argocd_overlay": argocd_overlay,
            "argocd_objects": argocd_objects,
        }
