"""The verbs rotate of MinIO and PostgreSQL refuse what cannot be before anything changes, and else begin with the keys and logins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .plays import PROJECT, run_playbook

PLAY = f"""
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - include_role: {{name: "{PROJECT}/roles/{{{{ component }}}}", tasks_from: rotate}}
"""
TENANT = {"name": "shop", "buckets": ["shop"], "secret": {"namespace": "shop", "name": "minio-shop"}}
SITE: dict[str, object] = {
    "component": "minio",
    "minio_tenants": [TENANT],
    "postgresql_consumers": [{"name": "shop"}],
    "slipway_components": ["minio", "postgresql"],
    "slipway_active_components": ["minio", "postgresql"],
    "slipway_component_namespaces": ["minio", "postgresql"],
    "slipway_kubectl": "/none/kubectl",
    "slipway_kubeconfig": "/none/kubeconfig",
}


def rotate(folder: Path, **options: object) -> str:
    (folder / "play.yml").write_text(PLAY)
    done = run_playbook(folder, "-i", "localhost,", "play.yml", "-e", json.dumps({**SITE, **options}))
    assert done.returncode != 0
    assert "changed=0" in done.stdout
    return " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"minio_rotate_tenants": ["shpo"]}, "minio_rotate_tenants names shpo; tenants here are shop."),
        (
            {"minio_provider": "external", "minio_external_endpoint": "store:9000"},
            "Somebody else runs the store and gives the keys: put other ones into the Secrets and run site.yml.",
        ),
        (
            {"component": "postgresql", "postgresql_rotate_consumers": ["shpo"]},
            "postgresql_rotate_consumers names shpo; consumers here are shop.",
        ),
        (
            {"component": "postgresql", "postgresql_provider": "external"},
            "Somebody else runs the server and gives the passwords: put other ones into the Secrets and run site.yml.",
        ),
    ],
)
def test_what_cannot_be_rotated(tmp_path: Path, options: dict[str, object], said: str) -> None:
    text = rotate(tmp_path, **options)
    assert said in text and "a second" not in text, text


def test_it_begins_with_the_keys(tmp_path: Path) -> None:
    """Where there is no cluster."""
    text = rotate(tmp_path, minio_rotate_tenants=["shop"])
    assert "Give each tenant a second key" in text and "kubeconfig /none/kubeconfig cannot be used" in text, text
    assert "Renew the copies" not in text


def test_it_begins_with_the_logins(tmp_path: Path) -> None:
    text = rotate(tmp_path, component="postgresql")
    assert "Another login for shop. Pods that are started anew: those of no component." in text
    assert "Give each consumer a second login" in text and "kubeconfig /none/kubeconfig cannot be used" in text, text
    assert "Have these components take the logins over" not in text
