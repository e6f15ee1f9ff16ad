"""playbooks/uninstall.yml touches nothing before it was told what to remove, and from which site."""

from __future__ import annotations

from pathlib import Path

import pytest

from .plays import PROJECT, run_playbook

REMOVABLE = "gpu_operator, cert_manager, front_door, git, argocd, kubeflow_pipelines, postgresql, airflow."


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], 'uninstall_component is ""; those that can be removed alone: ' + REMOVABLE),
        (["uninstall_component=k3s"], 'uninstall_component is "k3s"; those that can be removed alone: ' + REMOVABLE),
        (["uninstall_component=gpu_operator"], "run it again with -e uninstall_confirm=example"),
        (
            ["uninstall_component=gpu_operator", "uninstall_confirm=lab"],
            "run it again with -e uninstall_confirm=example",
        ),
    ],
)
def test_it_asks_first(tmp_path: Path, options: list[str], said: str) -> None:
    command = ["-i", str(PROJECT / "inventories/example"), str(PROJECT / "playbooks/uninstall.yml")]
    for option in options:
        command += ["-e", option]
    done = run_playbook(tmp_path, *command)
    assert done.returncode != 0
    assert said in " ".join(done.stdout.split()), done.stdout
    assert "changed=0" in done.stdout and "192.0.2" not in done.stdout
