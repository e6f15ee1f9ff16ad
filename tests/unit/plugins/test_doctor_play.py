"""The playbook as a person runs it: faults are lines of one table and of one file, and only errors make it fail."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from modules import doctor_probe, doctor_report

from .plays import PROJECT, run_playbook

LOCAL = {"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": sys.executable}
# Nobody listens there.
AWAY = {"ansible_host": "127.0.0.1", "ansible_port": 1}
DOCTOR = PROJECT / "playbooks/doctor.yml"


def inventory(folder: Path, **agents: dict[str, object]) -> str:
    """Write the hosts of a site with one server, this machine; return the options with which its state is in the folder."""
    groups = {"server": {"hosts": {"here": LOCAL}}, "agent": {"hosts": agents}}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"k3s_cluster": {"children": groups}}))
    return json.dumps({"slipway_state_dir": str(folder), "slipway_bundle_dir": str(folder / "bundle")})


def test_everything_is_away(tmp_path: Path) -> None:
    """A node is down, the other one has no k3s, there is no API and no bundle: each is said, and all that can be is looked at."""
    paths = inventory(tmp_path, away=AWAY)
    done = run_playbook(tmp_path, "-i", "hosts.yml", DOCTOR, "-e", paths)
    assert done.returncode == 2, done.stdout + done.stderr
    report = json.loads((tmp_path / "doctor.json").read_text())
    found = {(each["severity"], each["node"], each["check"]) for each in report["problems"]}
    assert found >= {
        ("error", "away", "reachable"),
        ("error", "here", "k3s"),
        ("error", "controller", "API"),
        ("warning", "controller", "bundle"),
        ("ok", "here", "clock"),
    }
    faults = [each for each in report["problems"] if each["severity"] != "ok"]
    for each in faults:
        assert each["found"] in done.stdout and f"remedy: {each['remedy']}" in done.stdout, each
    # What is well is in the report, and in the table only counted.
    assert {each["severity"] for each in report["problems"]} == {"error", "warning", "ok"}
    rows = re.findall(r"\b(?:ERROR|WARNING|OK) +(?:away|here|controller|cluster) ", done.stdout)
    assert len(rows) == len(faults)
    assert f"doctor: {report['errors']} errors" in done.stdout
    assert "inventories/" in done.stdout and "changed=1" not in done.stdout and "unreachable=1" not in done.stdout


DOUBLE = """#!/usr/bin/python
from ansible.module_utils.basic import AnsibleModule

NAMES = %r
AnsibleModule({name: {"type": "raw"} for name in NAMES}, supports_check_mode=True).exit_json(changed=False, **%r)
"""


@pytest.mark.parametrize("errors", [0, 1])
def test_only_errors_fail_it(tmp_path: Path, errors: int) -> None:
    (tmp_path / "modules").mkdir()
    report = {"table": "doctor: said", "problems": ["twice"], "errors": errors}
    for module, answer in ((doctor_probe, {"probe": {}}), (doctor_report, report)):
        options = list(yaml.safe_load(module.DOCUMENTATION)["options"])
        name = module.__name__.rpartition(".")[2]
        (tmp_path / f"modules/{name}.py").write_text(DOUBLE % (options, answer))
    paths = inventory(tmp_path)
    done = run_playbook(tmp_path, "-i", "hosts.yml", "-M", tmp_path / "modules", DOCTOR, "-e", paths)
    assert done.returncode == (2 if errors else 0), done.stdout + done.stderr
    assert "doctor: said" in done.stdout and "twice" not in done.stdout
    assert (str(tmp_path / "doctor.json") in done.stdout) is bool(errors)


def test_verification_begins_with_it(tmp_path: Path) -> None:
    listed = run_playbook(tmp_path, "--list-tasks", "-i", PROJECT / "inventories/lab", PROJECT / "playbooks/verify.yml")
    assert listed.returncode == 0, listed.stderr
    plays = [line.split(": ")[1] for line in listed.stdout.splitlines() if line.strip().startswith("play #")]
    assert plays[0].startswith("Doctor") and plays[1].startswith("Verify")
    assert "doctor : Report" in listed.stdout
