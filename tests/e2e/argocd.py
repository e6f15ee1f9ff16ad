"""Argo CD of a site as people use it: commits go in over the front door, applications come out there."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from .front_door import FrontDoor, eventually
from .git import Git
from .site import Site

NAMESPACE = "argocd"
# Everything that the tests commit and make begins so.
PREFIX = "slipway-model"
API = {"group": "argoproj.io", "version": "v1alpha1"}
# Seconds until a push has arrived in the cluster and its pods answer.
ARRIVAL = 60.0


class Argo:
    """Argo CD and its repository.

    Attributes:
        dev: an environment that follows main.
        prod: one that follows approvals.
    """

    def __init__(self, site: Site, git: Git, front_door: FrontDoor) -> None:
        """Look which environments there are, and who may write."""
        self.site = site
        self.git = git
        self.front_door = front_door
        sets = site.custom.list_namespaced_custom_object(**API, namespace=NAMESPACE, plural="applicationsets")["items"]
        generators = {item["metadata"]["name"]: item["spec"]["generators"][0].get("git", {}) for item in sets}
        self.dev = next((name for name, found in generators.items() if "directories" in found), "")
        self.prod = next((name for name, found in generators.items() if "files" in found), "")
        if not self.dev or not self.prod:
            pytest.skip(f"no environment follows main, or none follows approvals: {', '.join(generators)}")
        settings = site.core.read_namespaced_config_map("git-settings", "git").data["settings.json"]
        approvers: list[str] = json.loads(settings)["approvers"]
        users = [key.rpartition(".") for key in site.secret("git", "git-users")]
        writers = [name for name, _, right in users if right == "write" and name not in approvers]
        if not approvers or not writers:
            pytest.skip("git_users names no approver, or nobody who writes but does not approve")
        self.approver, self.writer = approvers[0], writers[0]

    # The repository

    def push(self, message: str, files: Mapping[str, str | None], user: str = "") -> str:
        """Commit files (None removes one) to main as the writer or `user`; return the commit."""
        with self.git.clone(user or self.writer) as clone:
            commit = clone.commit(message, files)
            clone.push()
            return commit

    def approve(self, app: str, revision: str) -> str:
        """Approve a commit for prod; return the commit of the approval."""
        text = f"revision: {revision}\napprovedBy: {self.approver}\nreason: the tests of the site\n"
        return self.push(f"{app}: {revision[:7]} to prod", {f"approvals/{self.prod}/{app}.yml": text}, self.approver)

    def revert(self, commit: str) -> None:
        """Revert a commit as the approver."""
        with self.git.clone(self.approver) as clone:
            clone.run("revert", "--no-edit", commit)
            clone.push()

    def application_files(self, app: str, version: str) -> dict[str, str]:
        """A web server that says its version, for both environments, by kustomize."""
        files = {
            f"apps/{app}/base/kustomization.yaml": as_yaml(
                resources=["server.yaml"],
                configMapGenerator=[{"name": "page", "literals": [f"index.html={version}"]}],
            ),
            f"apps/{app}/base/server.yaml": "---\n".join(as_yaml(**each) for each in self.server()),
        }
        for environment in (self.dev, self.prod):
            host = self.front_door.host(f"{app}-{environment}")
            files |= {
                f"apps/{app}/{environment}/kustomization.yaml": as_yaml(resources=["../base", "ingress.yaml"]),
                f"apps/{app}/{environment}/ingress.yaml": as_yaml(**ingress(host)),
            }
        return files

    def server(self) -> Sequence[dict[str, Any]]:
        """A web server that serves ConfigMap `page`: Deployment and Service."""
        labels = {"app": "server"}
        container = {
            "name": "server",
            "image": self.site.manifest["images"]["services"],
            "command": ["python3", "-m", "http.server", "--directory", "/page", "8080"],
            "ports": [{"containerPort": 8080}],
            "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "64Mi"}},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "page", "mountPath": "/page"}],
        }
        pod = {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [{"name": "page", "configMap": {"name": "page"}}],
        }
        return (
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": "server"},
                "spec": {
                    "replicas": 1,
                    "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": pod},
                },
            },
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "server"},
                "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
            },
        )

    # The cluster

    def application(self, name: str) -> dict[str, Any] | None:
        """An Application as the API knows it, None if there is none."""
        try:
            found: dict[str, Any] = self.site.custom.get_namespaced_custom_object(
                **API, namespace=NAMESPACE, plural="applications", name=name
            )
        except ApiException as error:
            if error.status != 404:
                raise
            return None
        return found

    def await_application(self, name: str, revision: str = "", timeout: float = ARRIVAL) -> dict[str, Any]:
        """Wait until an Application is Synced (to `revision`, if given) and Healthy."""

        def look() -> dict[str, Any]:
            found = self.application(name)
            assert found, f"there is no Application {name}"
            status = found.get("status", {})
            state = (status.get("sync", {}).get("status"), status.get("health", {}).get("status"))
            assert state == ("Synced", "Healthy"), f"{name}: {state}: {self.complaints(name)}"
            assert not revision or status["sync"]["revision"] == revision, f"{name}: {status['sync']}"
            return found

        return eventually(look, timeout)

    def complaints(self, name: str) -> str:
        """What Argo CD shows of an Application that is not well."""
        status = (self.application(name) or {}).get("status", {})
        operation = status.get("operationState", {})
        said = [item["message"] for item in status.get("conditions", [])]
        said.append(operation.get("message", ""))
        said += [item.get("message", "") for item in operation.get("syncResult", {}).get("resources", [])]
        return "; ".join(item for item in said if item)

    def page(self, app: str, environment: str) -> str:
        """What the application answers at the front door; empty when it does not."""
        answer = self.front_door.get(f"{app}-{environment}")
        return answer.text.strip() if answer.status == 200 else ""

    def await_page(self, app: str, environment: str, text: str) -> None:
        """Wait until the application answers `text`."""

        def look() -> bool:
            found = self.page(app, environment)
            assert found == text, f"{app}-{environment} answers {found!r}: {self.complaints(f'{app}-{environment}')}"
            return True

        eventually(look, ARRIVAL)

    def refresh(self, plural: str, name: str) -> None:
        """Have Argo CD look into the repository, as the button in its pages does."""
        key, value = {
            # A set that failed keeps the annotation, and hears only of another value.
            "applicationsets": ("argocd.argoproj.io/application-set-refresh", f"tests-{time.time_ns()}"),
            "applications": ("argocd.argoproj.io/refresh", "normal"),
        }[plural]
        body = {"metadata": {"annotations": {key: value}}}
        self.site.custom.patch_namespaced_custom_object(**API, namespace=NAMESPACE, plural=plural, name=name, body=body)

    def clean(self) -> None:
        """Take away what the tests have committed and what came of it; the history keeps the commits."""
        with self.git.clone(self.approver) as clone:
            folders = [f"apps/{PREFIX}*", f"approvals/{self.prod}/{PREFIX}*", f"platform/{PREFIX}*"]
            if listed := clone.run("ls-files", *folders).split():
                clone.commit("The tests are over", dict.fromkeys(listed))
                clone.push()

        def gone() -> bool:
            listed = self.site.custom.list_namespaced_custom_object(**API, namespace=NAMESPACE, plural="applications")
            left = [item["metadata"]["name"] for item in listed["items"]]
            left = [name for name in left if name.startswith(PREFIX)]
            assert not left, f"Applications that nobody wants any more: {left}"
            return True

        # An interrupted run may have pushed while nobody listened.
        for name in (self.dev, self.prod):
            self.refresh("applicationsets", name)
        self.refresh("applications", "platform")
        eventually(gone, ARRIVAL)
        # Argo CD removes no namespace that it has made.
        for name in self._namespaces():
            self.site.core.delete_namespace(name)
        eventually(lambda: not self._namespaces(), ARRIVAL)

    def _namespaces(self) -> list[str]:
        names = [item.metadata.name for item in self.site.core.list_namespace().items]
        return [name for name in names if name.startswith(PREFIX)]


def as_yaml(**content: Any) -> str:
    """YAML; JSON is some."""
    return json.dumps(content, indent=1) + "\n"


def ingress(host: str) -> dict[str, Any]:
    """An Ingress to the page of an application."""
    backend = {"service": {"name": "server", "port": {"name": "http"}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": "server"},
        "spec": {
            "ingressClassName": "traefik",
            "rules": [{"host": host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}],
        },
    }


@pytest.fixture(scope="session")
def argocd_installed(site: Site) -> None:
    """Skips aloud where the site has no Argo CD."""
    try:
        site.apps.read_namespaced_deployment("argocd-server", NAMESPACE)
    except ApiException as error:
        if error.status != 404:
            raise
        pytest.skip("the site has no Argo CD")


@pytest.fixture(scope="session")
def argo(site: Site, argocd_installed: None, git: Git, front_door: FrontDoor) -> Argo:
    """The site's Argo CD with the site's own Git service."""
    return Argo(site, git, front_door)
