"""What a site says wins over what every site shares."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from .plays import run_playbook

PROJECT = Path(__file__).parents[3]


def test_group_vars_of_the_site_win() -> None:
    """The example's domain is the one in its group_vars; what it does not name is the shared default."""
    run = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-inventory"),
            *("-i", "inventories/example", "--playbook-dir", "playbooks", "--host", "localhost", "--yaml"),
        ],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    )
    found = yaml.safe_load(run.stdout)
    site = yaml.safe_load((PROJECT / "inventories/example/group_vars/all.yml").read_text())
    shared = yaml.safe_load((PROJECT / "playbooks/group_vars/all/site.yml").read_text())
    assert found["slipway_domain"] == site["slipway_domain"] != shared["slipway_domain"]
    assert found["slipway_components"] == shared["slipway_components"]


@pytest.mark.parametrize("given", [["b", "x"], "b,x"])
def test_absent_machines_are_left_out(tmp_path: Path, given: object) -> None:
    """Said as a list, or as one word on the command line: names, not parts of names."""
    (tmp_path / "hosts.yml").write_text(
        "k3s_cluster: {children: {server: {hosts: {c: , b: , bb: }}, agent: {hosts: {x: , xx: }}}}\n"
    )
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars/all.yml").write_text(yaml.safe_dump({"slipway_absent": given}))
    names = ("nodes", "servers", "agents")
    content = "{{ [" + ", ".join(f"slipway_{name}" for name in names) + "] | to_json }}"
    task = {"ansible.builtin.copy": {"content": content, "dest": str(tmp_path / "out"), "mode": "0600"}}
    play = [{"hosts": "localhost", "gather_facts": False, "tasks": [task]}]
    folder = tmp_path / "playbooks"
    folder.mkdir()
    (folder / "group_vars").symlink_to(PROJECT / "playbooks/group_vars")
    (folder / "play.yml").write_text(yaml.safe_dump(play))
    done = run_playbook(tmp_path, "-i", "hosts.yml", "playbooks/play.yml")
    assert done.returncode == 0, done.stdout
    assert json.loads((tmp_path / "out").read_text()) == [["c", "bb", "xx"], ["bb", "c"], ["xx"]]
