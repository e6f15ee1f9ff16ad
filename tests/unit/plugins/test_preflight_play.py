"""The playbook as a person runs it: nodes that cannot be looked at are lines of one table, and nothing runs after it."""

from __future__ import annotations

import hashlib
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
        "gone": {"ansible_host": "127.0.0.2", "ansible_port": 1},
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
    variables = {**paths, "slipway_absent": ["gone"]}
    done = run_playbook(directory, "-i", "hosts.yml", "play.yml", "-e", json.dumps(variables))
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


def test_a_machine_that_is_declared_absent_is_not_asked(run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, directory = run
    report = json.loads((directory / "report/preflight.json").read_text())
    assert not [problem for problem in report["problems"] if problem["node"] == "gone"]
    assert "gone agent declared absent" in " ".join(done.stdout.split())
    assert [each["name"] for each in report["plan"]["nodes"] if each["name"] == "gone"] == []


def test_the_plan_is_made_of_what_the_roles_say(tmp_path: Path) -> None:
    """Of the variables of the site over their defaults; what cannot fit is refused before anything is changed."""
    bundle = tmp_path / "bundle"
    (bundle / "images").mkdir(parents=True)
    (bundle / "images/k3s.tar").write_bytes(b"x" * 2**20)
    digest = hashlib.sha256(b"x" * 2**20).hexdigest()
    head = {"schema": 1, "release": "r", "origin": "lab", "arch": "amd64", "versions": {}}
    images = {name: f"example.org/{name}:1" for name in ("services", "minio")}
    artifact = {"path": "images/k3s.tar", "kind": "images", "name": "k3s", "sha256": digest, "size": 2**20}
    (bundle / "bundle.yml").write_text(yaml.safe_dump({**head, "images": images, "artifacts": [artifact]}))
    variables = {
        "slipway_components": ["minio", "git", "kubeflow_pipelines"],
        "minio_values": {"resources": {"requests": {"cpu": 999, "memory": "1Gi"}}},
        "git_storage_size": "900Ti",
        "kubeflow_pipelines_resources": {"mysql": {"requests": {"memory": "512MB"}}},
    }
    hosts = {"server": {"hosts": {"here": LOCAL}, "vars": variables}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"k3s_cluster": {"children": hosts}}))
    paths = {"slipway_state_dir": str(tmp_path), "slipway_bundle_dir": str(bundle)}
    done = run_playbook(tmp_path, "-i", "hosts.yml", PROJECT / "playbooks/preflight.yml", "-e", json.dumps(paths))
    assert done.returncode != 0 and "changed=1" not in done.stdout
    report = json.loads((tmp_path / "report/preflight.json").read_text())
    found = " ".join(each["found"] for each in report["problems"] if each["check"] == "capacity")
    remedies = " ".join(each["remedy"] for each in report["problems"] if each["check"] == "capacity")
    assert "minio: a pod of the chart needs 999 CPUs and 1.0 GiB; here, the largest, has" in found
    assert "git: volume git-data needs 921600.0 GiB" in found
    assert "kubeflow_pipelines_resources.mysql: memory: '512MB' is not a Kubernetes quantity" in found
    assert "lower minio_values.resources" in remedies and "lower git_storage_size" in remedies
    needs = {each["component"]: each for each in report["plan"]["needs"]}
    assert [each["name"] for each in needs["k3s"]["pods"]] == ["coredns", "metrics-server"]
    assert needs["minio"]["volumes"][0]["size"] == 100 * 2**30
    assert "1 MiB in 1" in done.stdout and "needed by" in done.stdout


def test_the_run_ends_there(run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, _ = run
    assert done.returncode != 0
    assert "went on" not in done.stdout
    assert "unreachable=1" not in done.stdout and "changed=1" not in done.stdout
