"""playbooks/uninstall.yml touches nothing before it was told what to remove, from which site, and what is to become of the data."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from .plays import PROJECT, run_playbook

REMOVABLE = "gpu_operator, cert_manager, front_door, minio, git, argocd, kubeflow_pipelines, postgresql, airflow."
VOLUME = "volume pvc-1 of claim git/git-data (10Gi, on node agent-1, at /data/pvc-1)"
# Says in a log what it was asked for, and has one volume of namespace git.
DOUBLE = """#!/usr/bin/python
from ansible.module_utils.basic import AnsibleModule

module = AnsibleModule({name: {} for name in ("kubeconfig", "kubectl", "namespace", "state")}, supports_check_mode=True)
state = module.params["state"] or "found"
with open(%r, "a") as log:
    log.write(f"{state} {module.params['namespace']}\\n")
module.exit_json(changed=state == "absent", volumes=[%r] if module.params["namespace"] == "git" else [])
"""


@pytest.fixture(autouse=True)
def roles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Ansible find the test's roles."""
    monkeypatch.setenv("ANSIBLE_ROLES_PATH", str(tmp_path / "roles"))


def uninstall(folder: Path, options: dict[str, object]) -> subprocess.CompletedProcess[str]:
    """Run the playbook with roles that only say so in a log, on a site without nodes."""
    (folder / "modules").mkdir()
    (folder / "modules/component_volumes.py").write_text(DOUBLE % (str(folder / "log"), VOLUME))
    for name in ("git", "argocd"):
        tasks = folder / f"roles/{name}/tasks"
        tasks.mkdir(parents=True)
        note = {"ansible.builtin.shell": f"echo role {name} >> {folder}/log"}
        (tasks / "uninstall.yml").write_text(yaml.safe_dump([note]))
    (folder / "example").mkdir()
    (folder / "example/hosts.yml").write_text("k3s_cluster: {children: {server: {}, agent: {}}}\n")
    words = ["-M", str(folder / "modules"), "-i", "example", str(PROJECT / "playbooks/uninstall.yml")]
    site = {"slipway_state_dir": str(folder), "slipway_bundle_dir": str(folder)}
    return run_playbook(folder, *words, "-e", json.dumps({**site, **options}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, 'uninstall_component is ""; those that can be removed alone: ' + REMOVABLE),
        ({"uninstall_component": "k3s"}, 'uninstall_component is "k3s"; those that can be removed alone: ' + REMOVABLE),
        (
            {"uninstall_component": "git", "uninstall_data": "forget"},
            'uninstall_data is "forget", not keep or delete.',
        ),
        (
            {"uninstall_component": "git"},
            "This removes git from example and keeps what its volumes hold (uninstall_data=delete deletes that as well). "
            "If you mean it, run it again with -e uninstall_confirm=example",
        ),
        (
            {"uninstall_component": "git", "uninstall_confirm": "lab"},
            "run it again with -e uninstall_confirm=example",
        ),
        # The word for the deletion is for that only, and the other way round.
        (
            {"uninstall_component": "git", "uninstall_confirm": "git@example"},
            "run it again with -e uninstall_confirm=example",
        ),
        (
            {"uninstall_component": "git", "uninstall_data": "delete", "uninstall_confirm": "example"},
            f"This removes git from example and deletes for good: {VOLUME}. If you mean it, run it again with -e uninstall_confirm=git@example",
        ),
        (
            {"uninstall_component": "argocd", "uninstall_data": "delete", "uninstall_confirm": "git@example"},
            "This removes argocd from example for good; it has no volumes here, so there is nothing more to delete. "
            "If you mean it, run it again with -e uninstall_confirm=argocd@example",
        ),
    ],
)
def test_it_asks_first(tmp_path: Path, options: dict[str, object], said: str) -> None:
    done = uninstall(tmp_path, options)
    assert done.returncode != 0
    assert said in " ".join(done.stdout.split()), done.stdout
    assert "changed=0" in done.stdout
    log = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
    assert "role" not in log and "absent" not in log


@pytest.mark.parametrize(
    ("options", "log", "said"),
    [
        (
            {"uninstall_component": "git", "uninstall_confirm": "example"},
            ["role git", "found git"],
            f"Its data are kept: {VOLUME}. The next installation finds what was not set aside; this deletes all of it for good: the same "
            "command with -e uninstall_data=delete -e uninstall_confirm=git@example.",
        ),
        (
            {"uninstall_component": "git", "uninstall_data": "delete", "uninstall_confirm": "git@example"},
            ["found git", "role git", "absent git"],
            f"Deleted with all data: {VOLUME}.",
        ),
        (
            {"uninstall_component": "argocd", "uninstall_data": "delete", "uninstall_confirm": "argocd@example"},
            ["found argocd", "role argocd", "absent argocd"],
            "It has no volumes here: there was nothing to keep or to delete.",
        ),
    ],
)
def test_data_are_kept_or_deleted(tmp_path: Path, options: dict[str, object], log: list[str], said: str) -> None:
    done = uninstall(tmp_path, options)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "log").read_text().splitlines() == log
    assert said in " ".join(done.stdout.split()), done.stdout
