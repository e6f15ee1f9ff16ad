"""What roles say of their needs is what the objects ask for: charts of a bundle, manifests of k3s, objects of the roles themselves."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from .needs import assert_same, total
from .plays import outcome

PROJECT = Path(__file__).parents[3]
CACHE = Path(os.environ.get("SLIPWAY_CACHE", Path.home() / ".cache/slipway"))
# Of the base of a Kubernetes distribution, as k3s brings it and the lab's k3s as well.
PACKAGED = sorted((PROJECT / "tests/lab/k3s/internal/deploy/manifests").rglob("*.yaml"))
ROLES = ("cert_manager", "front_door", "git", "k3s", "minio", "postgresql")
PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    # For the roles' variables only.
IMPORTS
    - copy:
        content: >-
          {{ {'needs': {NEEDS},
              'objects': {'front_door': _front_door_objects, 'git': _git_objects, 'postgresql': _postgresql_objects},
              'claims': {'git': _git_claim, 'postgresql': _postgresql_claim},
              'values': {'minio': _minio_fixed_values | merge_values(minio_values),
                         'cert-manager': _cert_manager_fixed_values | merge_values(cert_manager_values)}} | to_json }}
        dest: DEST
        mode: "0600"
"""
IMAGES = (
    "services",
    "minio",
    "postgresql",
    "cert_manager_controller",
    "cert_manager_webhook",
    "cert_manager_cainjector",
)
SITES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rich": {
        "minio_storage_size": "1.5Ti",
        "minio_values": {"resources": {"requests": {"cpu": 2, "memory": "3Gi"}, "limits": {"memory": "4Gi"}}},
        "cert_manager_values": {"webhook": {"replicaCount": 3}, "cainjector": {"resources": {"requests": {"cpu": "1"}}}},
        "git_resources": {"limits": {"cpu": 1, "memory": "2Gi"}},
        "git_storage_size": "7Gi",
        "postgresql_resources": {"requests": {"cpu": "1500m"}},
        "k3s_disable": ["metrics-server"],
    },
    "elsewhere": {"git_provider": "external", "git_url": "https://git.example.com/p.git", "postgresql_provider": "external",
                  "minio_provider": "external", "minio_external_endpoint": "store.example.com:9000"},
    "spread": {"minio_mode": "distributed", "minio_servers": 3, "minio_drives_per_server": 2, "minio_storage_size": "5Gi"},
}  # fmt: skip
Json = dict[str, Any]


@pytest.fixture(scope="module", params=list(SITES))
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Json:
    """What the roles make of a site's variables."""
    folder = tmp_path_factory.mktemp(request.param)
    task = "    - import_role: {name: NAME, tasks_from: FILE}\n      when: false"
    files = {"k3s": "files"}
    imports = [task.replace("NAME", role).replace("FILE", files.get(role, "install")) for role in ROLES]
    needs = ", ".join(f"'{role}': _{role}_needs" for role in ROLES)
    play = PLAY.replace("IMPORTS", "\n".join(imports)).replace("NEEDS", needs).replace("DEST", str(folder / "out.json"))
    (folder / "play.yml").write_text(play)
    active = ["cert_manager", "front_door", "minio", "git", "postgresql"]
    variables = {
        "slipway_site": "test",
        "slipway_domain": "test.internal",
        "slipway_kubeconfig": "/kubeconfig",
        "slipway_kubectl": "/kubectl",
        "slipway_state_dir": str(folder),
        "slipway_bundle_dir": str(folder),
        "slipway_bundle": {
            "images": {name: f"registry.example.org/{name.replace('_', '-')}:1" for name in IMAGES},
            "artifacts": [],
            "versions": {},
        },
        "slipway_components": active,
        "slipway_active_components": active,
        "role_path": str(PROJECT / "roles/component"),
        "playbook_dir": str(PROJECT / "playbooks"),
        **SITES[request.param],
    }
    made = outcome(folder, variables)
    return {**made, "name": request.param, "folder": folder}


def bundles() -> list[Path]:
    """Every bundle on this machine: a named one, those of sites, those in the cache."""
    named = [Path(os.environ["BUNDLE"])] if os.environ.get("BUNDLE") else []
    found = [*named, *(PROJECT / ".slipway").glob("*/bundle"), CACHE / "upstream", *CACHE.glob("bundle/*")]
    return [path for path in found if (path / "bundle.yml").is_file()]


@pytest.mark.parametrize("chart", ["minio", "cert-manager"])
def test_needs_are_those_of_the_chart(site: Json, chart: str) -> None:
    if site["name"] == "elsewhere" and chart == "minio":
        assert site["needs"]["minio"] == {"pods": [], "volumes": []}
        return
    archives = [path for bundle in bundles() for path in bundle.glob(f"charts/{chart}-*.tgz")]
    programs = [path for path in (bundle / "bin/helm" for bundle in bundles()) if os.access(path, os.X_OK)]
    if not archives or not programs:
        pytest.skip("no bundle on this machine has the chart and helm: make bundle brings them")
    values = site["folder"] / f"{chart}.json"
    values.write_text(json.dumps(site["values"][chart]))
    answer = subprocess.run(
        [programs[0], "template", chart, archives[0], "--kube-version", "1.35.0", "--values", values],
        capture_output=True,
        text=True,
        check=True,
    )
    objects = [item for item in yaml.safe_load_all(answer.stdout) if item]
    assert_same(site["needs"][chart.replace("-", "_")], objects)
    if (site["name"], chart) == ("spread", "minio"):
        (servers,) = [item["spec"] for item in objects if item["kind"] == "StatefulSet"]
        claims = [each["metadata"]["name"] for each in servers["volumeClaimTemplates"]]
        named = {f"{claim}-minio-{server}" for claim in claims for server in range(servers["replicas"])}
        assert {each["name"] for each in site["needs"]["minio"]["volumes"]} == named


@pytest.mark.parametrize("role", ["front_door", "git", "postgresql"])
def test_needs_are_those_of_the_objects(site: Json, role: str) -> None:
    needs = site["needs"][role]
    if site["name"] == "elsewhere" and role != "front_door":
        assert needs == {"pods": [], "volumes": []}
        return
    assert_same(needs, site["objects"][role])
    assert total(needs["pods"])[0] == 1
    assert [each["name"] for each in needs.get("volumes", [])] == [
        claim for owner, claim in site["claims"].items() if owner == role
    ]


def test_needs_are_those_of_what_k3s_brings(site: Json) -> None:
    """Of its manifests those that ask for anything; they are templates."""
    texts = [text for path in PACKAGED if "requests:" in (text := path.read_text())]
    packaged = [item for text in texts for item in yaml.safe_load_all(re.sub(r"\{\{.*?\}\}", "x", text)) if item]
    left_out = {"metrics-server"} if site["name"] == "rich" else set()
    assert_same(site["needs"]["k3s"], [item for item in packaged if item["metadata"]["name"] not in left_out])


def test_every_component_says_what_it_needs() -> None:
    """But for one whose chart is others' and asks for what it likes."""
    release = yaml.safe_load((PROJECT / "playbooks/group_vars/all/site.yml").read_text())
    for role in [*release["slipway_components"], "k3s"]:
        known = yaml.safe_load((PROJECT / f"roles/{role}/vars/main.yml").read_text())
        assert (f"_{role}_needs" in known) is (role != "gpu_operator"), role
