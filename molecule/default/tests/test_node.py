"""An installed single node, looked at from outside: over SSH and over its API."""

from __future__ import annotations

import json
import os
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import testinfra
import yaml
from testinfra.host import Host

PROJECT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
STATE = PROJECT / ".slipway/molecule-default"
KUBECONFIG = STATE / "kubeconfig"


@pytest.fixture(scope="module")
def host() -> Host:
    """The node, reached as its operator reaches it: by SSH with checked host keys, then sudo."""
    inventory = yaml.safe_load((PROJECT / "molecule/default/inventory/hosts.yml").read_text())
    address = inventory["k3s_cluster"]["children"]["server"]["hosts"]["solo"]["ansible_host"]
    arguments = f"-F none -o UserKnownHostsFile={STATE / 'known_hosts'} -o StrictHostKeyChecking=yes"
    return testinfra.get_host(
        f"ssh://ops@{address}", sudo=True, ssh_identity_file=str(STATE / "ssh/id_ed25519"), ssh_extra_args=arguments
    )


@pytest.fixture
def api() -> str:
    """URL of the API as the site's kubeconfig names it."""
    config = yaml.safe_load(KUBECONFIG.read_text())
    return str(config["clusters"][0]["cluster"]["server"])


def test_service_comes_back(host: Host) -> None:
    """After the side effect killed its process the unit is ready again by itself; it is enabled, so a reboot does not end it."""
    service = host.service("k3s")
    end = time.monotonic() + 90
    while not service.is_running and time.monotonic() < end:
        time.sleep(0.5)
    assert service.is_running
    assert service.is_enabled


@pytest.mark.parametrize(
    "path",
    [
        "/etc/rancher/k3s/config.yaml",
        "/etc/rancher/k3s/token",
        "/etc/rancher/k3s/agent-token",
        "/etc/rancher/k3s/slipway.json",
        "/etc/rancher/k3s/k3s.yaml",
        "/var/lib/rancher/k3s/server/token",
    ],
)
def test_secrets_are_for_root_only(host: Host, path: str) -> None:
    """Files with credentials are 0600 and root's."""
    file = host.file(path)
    assert file.exists
    assert (file.mode, file.user) == (0o600, "root")


def test_tokens_differ(host: Host) -> None:
    """An agent's token does not let a server join."""
    assert host.file("/etc/rancher/k3s/token").content != host.file("/etc/rancher/k3s/agent-token").content


def test_no_secret_in_arguments_or_unit(host: Host) -> None:
    """Neither the process list nor the unit shows a token."""
    token = host.file("/etc/rancher/k3s/token").content_string.strip()
    assert len(token) == 64
    assert token not in host.check_output("ps -eo args")
    assert token not in host.file("/etc/systemd/system/k3s.service").content_string


def test_secrets_are_encrypted_at_rest(host: Host) -> None:
    """The datastore's files do not hold the root password of MinIO as it is."""
    # The value goes through a pipe only: in an argument it would be where it must not be.
    password = "k3s kubectl -n minio get secret minio-root -o jsonpath={.data.rootPassword} | base64 -d"
    assert int(host.check_output(f"{password} | wc -c")) >= 32
    answer = host.run(f"{password} | grep -rqaF -f /dev/stdin /var/lib/rancher/k3s/server/db")
    assert answer.rc == 1


def test_node_is_ready(host: Host) -> None:
    """The cluster has exactly this node, under its inventory name, ready, at the version of the binary."""
    nodes = json.loads(host.check_output("k3s kubectl get nodes -o json"))["items"]
    assert [node["metadata"]["name"] for node in nodes] == ["solo"]
    conditions = {condition["type"]: condition["status"] for condition in nodes[0]["status"]["conditions"]}
    assert conditions["Ready"] == "True"
    version = host.check_output("k3s --version").split()[2]
    assert nodes[0]["status"]["nodeInfo"]["kubeletVersion"] == version


def test_strangers_are_refused(api: str) -> None:
    """Without credentials the API answers nothing but its CA."""
    context = ssl._create_unverified_context()
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"{api}/readyz", context=context, timeout=10)
    assert refusal.value.code == 401
    with urllib.request.urlopen(f"{api}/cacerts", context=context, timeout=10) as answer:
        assert b"BEGIN CERTIFICATE" in answer.read()


def test_kubeconfig_is_private() -> None:
    """The controller's copy is readable by its owner only."""
    assert KUBECONFIG.stat().st_mode & 0o777 == 0o600
