"""The playbook as a person runs it: nodes that cannot be looked at are lines of one table, and nothing runs after it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .plays import PROJECT, run_playbook

LOCAL = {"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": sys.executable}
HOSTS = {
    "server": {"here": LOCAL},
    "agent": {
        # Nobody listens there.
        "away": {"ansible_host": "127.0.0.1", "ansible_port": 1},
        "no-python": {**LOCAL, "ansible_python_interpreter": "/usr/bin/python2"},
        "no-sudo": {**LOCAL, "ansible_become": True, "ansible_become_exe": "/no/sudo", "ansible_become_user": "nobody"},
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    directory = tmp_path_factory.mktemp("site")
    (directory / "hosts.yml").write_text(
        yaml.safe_dump(
            {
                "k3s_cluster": {
                    "children": {group: {"hosts": hosts} for group, hosts in HOSTS.items()},
                    "vars": {"preflight_min_cpu": 1, "k3s_flannel_backend": "vxlann", "preflight_min_cpus": 999},
                }
            }
        )
    )
    after = {"hosts": "all", "gather_facts": False, "tasks": [{"ansible.builtin.debug": {"msg": "went on"}}]}
    preflight = {"ansible.builtin.import_playbook": str(PROJECT / "playbooks/preflight.yml")}
    (directory / "play.yml").write_text(yaml.safe_dump([preflight, after, {**after, "hosts": "localhost"}]))
    paths = {"slipway_state_dir": str(directory), "slipway_bundle_dir": str(directory / "bundle")}
    done = run_playbook(directory, "-i", "hosts.yml", "play.yml", "-e", json.dumps(paths))
    return done, directory


def test_every_problem_is_reported(run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, directory = run
    report = json.loads((directory / "report/preflight.json").read_text())
    found = {(problem["node"], problem["check"]) for problem in report["problems"]}
    assert found >= {
        ("away", "reachable"),
        ("no-python", "python"),
        ("no-sudo", "sudo"),
        ("here", "cpus"),
        ("controller", "bundle"),
    }
    texts = [problem["found"] for problem in report["problems"] if problem["check"] == "variable"]
    assert f"preflight_min_cpu in {directory}/hosts.yml:" in " ".join(texts)
    assert "vxlann" in " ".join(texts)
    assert abs(report["nodes"]["here"]["clock_offset"]) < 1
    for problem in report["problems"]:
        assert problem["found"] in done.stdout
    assert f"preflight: {report['errors']} errors" in done.stdout


def test_the_run_ends_there(run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, _ = run
    assert done.returncode != 0
    assert "went on" not in done.stdout
    assert "unreachable=1" not in done.stdout and "changed=1" not in done.stdout
