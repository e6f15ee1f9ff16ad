"""What the argocd role makes of upstream's manifests, wherever a bundle has them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest
import yaml

PROJECT = Path(__file__).parents[3]
ansible.module_utils.__path__.append(str(PROJECT / "plugins/module_utils"))
from ansible.module_utils.slipway.flows import Addresses, policies  # noqa: E402
from ansible.module_utils.slipway.kustomize import render  # noqa: E402

from .needs import assert_same  # noqa: E402

CACHE = Path(os.environ.get("SLIPWAY_CACHE", Path.home() / ".cache/slipway"))
IMAGES = {
    "argocd": "registry.example.com:5000/argoproj/argocd:v1",
    "argocd_redis": "registry.example.com:5000/redis:v2",
    "argocd_dex": "registry.example.com:5000/dex:v3",
}
PLAY = """
- hosts: localhost
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
    slipway_site: site
    slipway_domain: site.example.com
    slipway_bundle: {images: IMAGES}
    slipway_components: [cert_manager, git, argocd]
  tasks:
    # For the role's variables only.
    - import_role: {name: argocd, tasks_from: precheck}
      when: false
    - copy:
        content: >-
          {{ {'kustomization': _argocd_kustomization, 'flows': _argocd_flows, 'objects': _argocd_objects, 'guarded': _argocd_guarded,
              'url': _argocd_repository, 'credential': _argocd_credential, 'needs': _argocd_needs} | to_json }}
        dest: DEST
        mode: "0600"
    - import_role: {name: argocd, tasks_from: precheck}
"""
RICH: dict[str, Any] = {
    "argocd_dex": {"connectors": [{"type": "ldap"}]},
    "argocd_notifications": {"service.webhook.chat": "url: https://chat.example.com"},
    "argocd_resources": {"repo_server": {"limits": {"memory": "3Gi"}}},
    "argocd_rbac": {"operator": ["team"]},
    "argocd_patches": [
        {
            "patch": json.dumps(
                {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "argocd-cm"}, "data": {"a": "b"}}
            )
        }
    ],
    "argocd_platform_sources": ["https://charts.example.com"],
}
EXTERNAL = {"git_provider": "external", "git_url": "git@git.example.com:us/platform.git"}
Variables = Callable[[str], dict[str, Any]]
Site = dict[str, dict[str, Any]]


def bundles() -> list[Path]:
    """Every bundle on this machine: a named one, those of sites, those in the cache."""
    named = [Path(os.environ["BUNDLE"])] if os.environ.get("BUNDLE") else []
    found = [*named, *(PROJECT / ".slipway").glob("*/bundle"), CACHE / "upstream", *CACHE.glob("bundle/*")]
    return [path for path in found if (path / "bundle.yml").is_file()]


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Variables:
    """The role's own variables, by the name of a site."""
    sites: dict[str, dict[str, Any]] = {"plain": {}, "rich": RICH, "external": EXTERNAL}
    known: dict[str, dict[str, Any]] = {}

    def find(site: str) -> dict[str, Any]:
        if site not in known:
            folder = tmp_path_factory.mktemp(site)
            out, play = folder / "out.json", folder / "play.yml"
            play.write_text(PLAY.replace("DEST", str(out)).replace("IMAGES", json.dumps(IMAGES)))
            command = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-c", "local", str(play)]
            answer = subprocess.run(
                [*command, "-e", json.dumps(sites[site])],
                env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
                capture_output=True,
                text=True,
                check=False,
            )
            assert answer.returncode == 0, answer.stdout + answer.stderr
            known[site] = json.loads(out.read_text())
        return known[site]

    return find


@pytest.fixture(scope="module")
def rendered(variables: Variables) -> Callable[[str], Site]:
    """The objects of a site, by kind and by name, from upstream's manifests."""
    for bundle in bundles():
        found = [
            item
            for item in yaml.safe_load((bundle / "bundle.yml").read_text())["artifacts"]
            if item["name"] == "argocd"
        ]
        path = next((bundle / item["path"] for item in found if item["kind"] == "manifest"), None)
        if path and path.is_file() and (bundle / "bin/kubectl").is_file():
            break
    else:
        pytest.skip("no bundle on this machine has Argo CD's manifests: make bundle, or BUNDLE=<directory>")
    known: dict[str, Site] = {}

    def find(site: str) -> Site:
        if site not in known:
            known[site] = {}
            for item in render(str(bundle / "bin/kubectl"), str(path), variables(site)["kustomization"]):
                known[site].setdefault(item["kind"], {})[item["metadata"]["name"]] = item
        return known[site]

    return find


def workloads(site: Site) -> dict[str, dict[str, Any]]:
    """Pod templates by the workload's name."""
    return {
        name: item["spec"]["template"] for kind in ("Deployment", "StatefulSet") for name, item in site[kind].items()
    }


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    """All containers of a template, those of preparation too."""
    return [*template["spec"]["containers"], *template["spec"].get("initContainers", [])]


@pytest.mark.parametrize("name", ["plain", "rich"])
def test_every_container_has_its_bounds_and_its_image_from_the_bundle(
    rendered: Callable[[str], Site], name: str
) -> None:
    for workload, template in workloads(rendered(name)).items():
        for container in containers(template):
            where = f"{workload}/{container['name']}"
            assert container["image"] in IMAGES.values(), where
            assert container["imagePullPolicy"] == "IfNotPresent", where
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), where
            assert "memory" in container["resources"]["limits"], where


@pytest.mark.parametrize("name", ["plain", "rich"])
def test_its_needs_are_what_the_manifests_ask_for(
    variables: Variables, rendered: Callable[[str], Site], name: str
) -> None:
    assert_same(variables(name)["needs"], [item for items in rendered(name).values() for item in items.values()])


def test_only_what_somebody_uses_is_there(rendered: Callable[[str], Site]) -> None:
    plain = rendered("plain")
    assert set(workloads(plain)) == {
        "argocd-application-controller",
        "argocd-applicationset-controller",
        "argocd-redis",
        "argocd-repo-server",
        "argocd-server",
    }
    names = [name for kind in plain.values() for name in kind]
    assert not [name for name in names if "dex" in name or "notifications" in name]
    assert "NetworkPolicy" not in plain
    rich = rendered("rich")
    assert set(workloads(rich)) - set(workloads(plain)) == {"argocd-dex-server", "argocd-notifications-controller"}
    assert rich["ConfigMap"]["argocd-notifications-cm"]["data"] == RICH["argocd_notifications"]
    assert yaml.safe_load(rich["ConfigMap"]["argocd-cm"]["data"]["dex.config"]) == RICH["argocd_dex"]


def test_what_the_user_patches_wins_and_restarts(rendered: Callable[[str], Site]) -> None:
    plain, rich = rendered("plain"), rendered("rich")
    assert rich["ConfigMap"]["argocd-cm"]["data"]["a"] == "b"
    repository = workloads(rich)["argocd-repo-server"]["spec"]["containers"][0]
    assert repository["resources"]["limits"] == {"memory": "3Gi"}
    assert repository["resources"]["requests"]["cpu"]
    marks = [workloads(site)["argocd-server"]["metadata"]["annotations"]["slipway/settings"] for site in (plain, rich)]
    assert marks[0] != marks[1]
    assert 'g, "team", role:operator' in rich["ConfigMap"]["argocd-rbac-cm"]["data"]["policy.csv"]


def test_no_password_is_an_argument(rendered: Callable[[str], Site]) -> None:
    for template in workloads(rendered("rich")).values():
        for container in containers(template):
            words = " ".join([*container.get("command", []), *container.get("args", [])])
            assert "--requirepass" not in words
            assert "$(" not in words
    redis = workloads(rendered("plain"))["argocd-redis"]["spec"]
    assert redis["automountServiceAccountToken"] is False
    assert not redis.get("initContainers")
    assert "argocd-redis" not in rendered("plain")["Role"]


def test_every_pod_is_allowed_where_restricted_pods_are(rendered: Callable[[str], Site]) -> None:
    """As Pod Security judges it; upstream's pods are, and ours must stay so."""
    for name, template in workloads(rendered("rich")).items():
        pod = template["spec"].get("securityContext", {})
        for container in containers(template):
            own = {**pod, **container["securityContext"]}
            assert own["runAsNonRoot"] is True, name
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["capabilities"]["drop"] == ["ALL"], name
            assert own["seccompProfile"]["type"] == "RuntimeDefault", name


def test_all_is_in_the_namespace_and_well_set(rendered: Callable[[str], Site]) -> None:
    plain = rendered("plain")
    for kind in ("Deployment", "StatefulSet", "Service", "ConfigMap", "Secret", "Role", "RoleBinding"):
        assert {item["metadata"]["namespace"] for item in plain[kind].values()} == {"argocd"}
    for binding in plain["ClusterRoleBinding"].values():
        assert {subject["namespace"] for subject in binding["subjects"]} == {"argocd"}
    settings = plain["ConfigMap"]["argocd-cm"]["data"]
    assert settings["url"] == "https://argocd.site.example.com"
    assert (settings["exec.enabled"], settings["admin.enabled"]) == ("false", "true")
    assert "obj.status.health.status" in settings["resource.customizations.health.argoproj.io_Application"]
    assert "resource.exclusions" in settings
    assert plain["ConfigMap"]["argocd-cmd-params-cm"]["data"]["server.insecure"] == "true"
    assert plain["ConfigMap"]["argocd-rbac-cm"]["data"]["policy.default"] == ""


@pytest.mark.parametrize("site", ["plain", "rich", "external"])
def test_the_flows_are_flows(variables: Variables, site: str) -> None:
    """Of pods that are there, and to the outside only where somebody asked for it."""
    made = policies(
        variables(site)["flows"], "argocd", Addresses(("10.0.0.1/32",), 6443, ("10.0.0.1/32",), ("10.42.0.0/24",))
    )
    names = {item["metadata"]["name"] for item in made}
    outside = {item["metadata"]["name"] for item in made if "0.0.0.0/0" in json.dumps(item)}
    assert (
        outside
        == {
            "plain": set(),
            "rich": {"slipway-repositories", "slipway-login", "slipway-notifications"},
            "external": {"slipway-repositories"},
        }[site]
    )
    assert ("slipway-git" in names) == (site != "external")
    assert {"slipway-people", "slipway-api", "slipway-dns", "slipway-redis", "slipway-repository"} <= names


def test_the_repository_and_its_credential(variables: Variables) -> None:
    plain, external = variables("plain"), variables("external")
    assert plain["url"] == "http://git.git/platform.git"
    assert plain["credential"] == {
        "source": "git-users", "taken": {"password": "argocd.read"}, "fixed": {"username": "argocd"},
    }  # fmt: skip
    assert external["url"] == EXTERNAL["git_url"]
    assert external["credential"]["taken"] == {"sshPrivateKey": "sshPrivateKey"}
    assert {"argocd", "git", "cert-manager", "kube-system"} <= set(plain["guarded"])


def test_the_initial_password_is_listed(variables: Variables) -> None:
    """Under the label of generated credentials; Argo CD adds the password itself, and fails on a Secret without any key."""
    secret = next(item for item in variables("plain")["objects"] if item["kind"] == "Secret")
    assert secret["metadata"] == {
        "name": "argocd-initial-admin-secret",
        "labels": {"app.kubernetes.io/managed-by": "slipway"},
    }
    assert set(secret["data"]) == {"username"}
