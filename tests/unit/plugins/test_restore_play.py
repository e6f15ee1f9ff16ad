"""playbooks/restore.yml touches nothing before it was told what to restore, on which site, and to what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .plays import PROJECT, run_playbook

SITE = {"slipway_components": ["cert_manager", "minio", "postgresql"], "restore_component": "postgresql"}
MEANT = {**SITE, "restore_confirm": "example"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {**SITE, "restore_component": ""},
            'restore_component is ""; those that can be restored: site, cluster, minio, postgresql.',
        ),
        (
            {**MEANT, "slipway_components": ["minio"]},
            'is "postgresql"; those that can be restored: site, cluster, minio.',
        ),
        ({**SITE, "restore_confirm": "lab"}, "run it again with -e restore_confirm=example"),
        ({**MEANT, "postgresql_provider": "external"}, "Only an embedded server is restored here"),
        ({**MEANT, "postgresql_restore_target_time": "noon"}, "or empty (noon)"),
        ({**MEANT, "postgresql_restore_target_name": "backup"}, "the time of that point"),
        ({**MEANT, "restore_component": "minio"}, "minio comes back from an archive of backup.yml"),
        ({**MEANT, "postgresql_restore_timeline": "0"}, "a number (0)"),
        ({**MEANT, "postgresql_restore_source": "../x"}, "digits or empty (../x)"),
        ({**MEANT, "postgresql_restore_dump": "/nowhere/all.sql"}, "or empty (/nowhere/all.sql)"),
    ],
)
def test_it_asks_first(tmp_path: Path, options: dict[str, object], said: str) -> None:
    inventory = str(PROJECT / "inventories/example")
    done = run_playbook(tmp_path, "-i", inventory, str(PROJECT / "playbooks/restore.yml"), "-e", json.dumps(options))
    assert done.returncode != 0
    assert said in " ".join(done.stdout.split()), done.stdout
    assert "changed=0" in done.stdout


def test_good_options_get_to_the_cluster(tmp_path: Path) -> None:
    """Where there is none here."""
    options = {
        **MEANT,
        "postgresql_restore_target_time": "2026-11-26T14:05:00+01:00",
        "postgresql_restore_timeline": 2,
        "slipway_kubeconfig": str(tmp_path / "none"),
        "slipway_state_dir": str(tmp_path),
    }
    inventory = str(PROJECT / "inventories/example")
    done = run_playbook(tmp_path, "-i", inventory, str(PROJECT / "playbooks/restore.yml"), "-e", json.dumps(options))
    assert done.returncode != 0
    assert "Ask for the point in time" in done.stdout
    assert "Only an embedded server" not in done.stdout
    assert "Look for the server" not in done.stdout
