"""What a site says wins over what every site shares."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

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
