"""What the git role puts into the cluster, and what a repository begins with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[3]
PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    # For the role's variables only.
    - import_role: {name: git, tasks_from: configure}
      when: false
    - copy:
        content: "{{ {'objects': _git_objects, 'flows': _git_flows, 'secrets': _git_secrets, 'missing': _git_missing_keys} | to_json }}"
        dest: DEST
        mode: "0600"
"""


def render(folder: Path, **variables: Any) -> dict[str, Any]:
    """The role's objects, flows and Secrets on a site called test."""
    play = folder / "play.yml"
    play.write_text(PLAY.replace("DEST", str(folder / "out.json")))
    values = {
        "slipway_site": "test",
        "slipway_bundle": {"images": {"services": "registry.example.org/services:1"}},
        "_git_external": {"resources": []},
        **variables,
    }
    answer = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", str(play), "-e", json.dumps(values)],
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    out: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return out


SITE = {"slipway_domain": "test.internal", "slipway_kubeconfig": "/kc", "slipway_kubectl": "kubectl"}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """With the role's defaults."""
    return render(tmp_path_factory.mktemp("git"), **SITE)


def find(rendered: dict[str, Any], kind: str, name: str = "git") -> dict[str, Any]:
    """An object by kind and name."""
    (found,) = [item for item in rendered["objects"] if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    assert isinstance(found, dict)
    return found


def test_the_pod_is_restricted_and_alone(rendered: dict[str, Any]) -> None:
    """What Pod Security restricted asks, nothing to write but the volume, and one at a time."""
    deployment = find(rendered, "Deployment")["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["image"] == "registry.example.org/services:1"
    writable = [mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["data", "tmp"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_every_argument_is_one_of_the_program(rendered: dict[str, Any]) -> None:
    """And every path in it lies below a mount, or in the image."""
    (container,) = find(rendered, "Deployment")["spec"]["template"]["spec"]["containers"]
    program = PROJECT / "services" / Path(container["command"][1]).name
    usage = subprocess.check_output([sys.executable, str(program), "--help"], text=True)
    mounts = tuple(mount["mountPath"] for mount in container["volumeMounts"])
    for argument in container["args"]:
        option, _, value = argument.partition("=")
        assert option in usage
        assert not value.startswith("/") or value.startswith((*mounts, "/opt/git-hooks")), argument
    recipe = (PROJECT / "services/image/Containerfile").read_text()
    for hook in ("pre-receive", "post-receive"):
        assert f"/opt/git-hooks/{hook}" in recipe


def test_only_declared_users_are_mounted(rendered: dict[str, Any], tmp_path: Path) -> None:
    """A user that is taken out leaves a key in the Secret, and no file."""
    names = ["argocd.read", "airflow.read", "pipeline.write", "admin.write"]
    (users, webhook) = rendered["secrets"]
    assert [key["name"] for key in users["wanted"]] == names
    assert {key["length"] for key in (*users["wanted"], *webhook["wanted"])} == {40}
    volumes = find(rendered, "Deployment")["spec"]["template"]["spec"]["volumes"]
    (secret,) = [volume["secret"] for volume in volumes if volume["name"] == "users"]
    assert [item["key"] for item in secret["items"]] == names
    assert secret["defaultMode"] == 0o440
    settings = json.loads(find(rendered, "ConfigMap", "git-settings")["data"]["settings.json"])
    assert settings["approvers"] == ["admin"]

    other = [{"name": "argocd", "right": "read"}, {"name": "x", "right": "write", "approve": False}]
    again = render(tmp_path, **SITE, git_users=other)
    assert json.loads(find(again, "ConfigMap", "git-settings")["data"]["settings.json"])["approvers"] == []
    # Other approvers count when the run ends.
    templates = [find(each, "Deployment")["spec"]["template"]["metadata"] for each in (rendered, again)]
    assert templates[0]["annotations"] != templates[1]["annotations"]


def test_ports_fit(rendered: dict[str, Any]) -> None:
    """Service, probes and flows name the container's one port."""
    (container,) = find(rendered, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": 8080}]
    assert find(rendered, "Service")["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    assert {tuple(flow["ports"]) for flow in rendered["flows"] if "from" in flow} == {(8080,)}
    outward = {flow["name"]: flow["ports"] for flow in rendered["flows"] if "to" in flow and "ports" in flow}
    assert outward == {"pushes-server": [8080], "pushes-applicationset": [7000]}
    (rule,) = find(rendered, "Ingress")["spec"]["rules"]
    assert rule["host"] == "git.test.internal"


def test_the_content_is_mounted_as_folders(rendered: dict[str, Any]) -> None:
    """Each file of the ConfigMap has a place; the folders that Argo CD looks into exist and hold no manifest."""
    content = find(rendered, "ConfigMap", "git-content")["data"]
    volumes = find(rendered, "Deployment")["spec"]["template"]["spec"]["volumes"]
    (mounted,) = [volume["configMap"]["items"] for volume in volumes if volume["name"] == "content"]
    assert sorted(item["key"] for item in mounted) == sorted(content)
    assert [item["path"] for item in mounted] == [
        f"{name}README.md" for name in ("", "apps/", "approvals/", "platform/", "dags/")
    ]
    assert "{{" not in "".join(content.values())
    assert "git clone https://<user>@git.test.internal/platform.git" in content["README.md"]


def test_the_readme_shows_an_approval_that_is_one(rendered: dict[str, Any]) -> None:
    """The command of the README writes what the hook takes."""
    readme = find(rendered, "ConfigMap", "git-content")["data"]["README.md"]
    (command,) = re.findall(r"printf '([^']+)' \"\$revision\" >", readme)
    text = subprocess.check_output(["printf", command, "a" * 40], text=True)
    hooks = subprocess.check_output(
        [sys.executable, "-c", "import git_hooks, json, sys; print(json.dumps(git_hooks.parse(sys.stdin.read())))"],
        input=text,
        text=True,
        cwd=PROJECT / "services",
    )
    values, faults = json.loads(hooks)
    assert faults == []
    assert values == yaml.safe_load(text)


def test_external_credentials(tmp_path: Path) -> None:
    """By the kind of the address; a Secret without data lacks them all."""

    def missing(url: str, resources: list[dict[str, Any]]) -> list[str]:
        out = render(tmp_path, **SITE, git_provider="external", git_url=url, _git_external={"resources": resources})
        found: list[str] = out["missing"]
        return found

    assert missing("https://example.org/p.git", []) == ["username", "password"]
    assert missing("https://example.org/p.git", [{"data": {"username": "eA=="}}]) == ["password"]
    assert missing("git@example.org:p.git", [{"data": None}]) == ["sshPrivateKey"]
    assert missing("git@example.org:p.git", [{"data": {"sshPrivateKey": "eA=="}}]) == []
