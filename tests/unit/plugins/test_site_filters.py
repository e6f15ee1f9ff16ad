"""The filters kubeconfig_for and with_tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from filter.kubeconfig import kubeconfig_for
from filter.with_tasks import with_tasks

K3S_YAML = """
apiVersion: v1
kind: Config
clusters: [{name: default, cluster: {server: "https://127.0.0.1:6443", certificate-authority-data: Q0E=}}]
users: [{name: default, user: {client-key-data: S0VZ}}]
contexts: [{name: default, context: {cluster: default, user: default}}]
current-context: default
"""


def test_kubeconfig_gets_address_and_name() -> None:
    config = yaml.safe_load(kubeconfig_for(K3S_YAML, "default-site", "https://192.0.2.1:6443"))
    assert config["clusters"] == [
        {"name": "default-site", "cluster": {"server": "https://192.0.2.1:6443", "certificate-authority-data": "Q0E="}}
    ]
    assert config["users"] == [{"name": "default-site", "user": {"client-key-data": "S0VZ"}}]
    assert config["contexts"] == [
        {"name": "default-site", "context": {"cluster": "default-site", "user": "default-site"}}
    ]
    assert config["current-context"] == "default-site"


@pytest.mark.parametrize("text", ["", "[", "clusters: []", "clusters: [{}]\nusers: [{}]"])
def test_what_is_no_kubeconfig_is_refused(text: str) -> None:
    with pytest.raises(AnsibleFilterError, match=r"k3s\.yaml: not a kubeconfig"):
        kubeconfig_for(text, "site", "https://192.0.2.1:6443")


def test_components_that_know_a_verb(tmp_path: Path) -> None:
    for file in ("a/tasks/restore.yml", "b/tasks/install.yml", "c/tasks/restore.yml", "d/restore.yml"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).touch()
    assert with_tasks(["c", "b", "a", "d", "e"], "restore", str(tmp_path)) == ["c", "a"]
    assert with_tasks(["a"], "uninstall", str(tmp_path)) == []
