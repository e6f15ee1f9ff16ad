"""What the postgresql role puts into the cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest

PROJECT = Path(__file__).parents[3]
ansible.module_utils.__path__.append(str(PROJECT / "plugins/module_utils"))
from ansible.module_utils.slipway.flows import Addresses, policies  # noqa: E402

from .plays import outcome  # noqa: E402

Json = dict[str, Any]
PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    # For the role's variables only.
    - import_role: {name: postgresql, tasks_from: provide}
      when: false
    - copy:
        content: >-
          {{ {'objects': _postgresql_objects, 'flows': _postgresql_flows, 'faults': _postgresql_faults, 'names': _postgresql_names,
              'certificates': _postgresql_certificate_objects} | to_json }}
        dest: DEST
        mode: "0600"
"""
SITE: Json = {
    "slipway_site": "test",
    "slipway_bundle": {"images": {"postgresql": "registry.example.org/postgresql:1"}},
    "slipway_components": ["cert_manager", "minio", "postgresql"],
    "slipway_active_components": ["cert_manager", "minio", "postgresql"],
    # Where the objects are asked for.
    "role_path": str(PROJECT / "roles/component"),
    "postgresql_consumers": [{"name": "model-registry"}, {"name": "shop", "namespaces": ["shop-dev", "shop-prod"]}],
}
ADDRESSES = Addresses(("10.0.0.1/32",), 6443, ("10.0.0.1/32",), ("10.42.0.0/16",))


def render(folder: Path, **variables: Any) -> Json:
    """The role's objects, flows and faults."""
    (folder / "play.yml").write_text(PLAY.replace("DEST", str(folder / "out.json")))
    return outcome(folder, {**SITE, **variables})


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Json:
    """With the role's defaults, but for the consumers."""
    return render(tmp_path_factory.mktemp("postgresql"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Json:
    """Where all is set that can be, and some of it wrong."""
    return render(
        tmp_path_factory.mktemp("other"),
        cert_manager_issuer="acme",
        slipway_components=["minio", "postgresql"],
        postgresql_consumers=[{"name": "kubeflow-pipelines"}],
        postgresql_settings={
            "shared_buffers": "1GB",
            "application_name": "it's",
            "ssl": False,
            "log_connections": True,
        },
        postgresql_backup_keep_days=0,
    )


def find(rendered: Json, kind: str) -> Json:
    """The object of a kind."""
    (found,) = [item for item in rendered["objects"] if item["kind"] == kind]
    assert isinstance(found, dict)
    return found


def pod(rendered: Json) -> Json:
    """The pod of the StatefulSet."""
    spec: Json = find(rendered, "StatefulSet")["spec"]["template"]["spec"]
    return spec


def test_the_pod_is_restricted(rendered: Json) -> None:
    """What Pod Security restricted asks; every container runs the one image and writes to volumes only."""
    spec = pod(rendered)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert [each["name"] for each in (*spec["initContainers"], *spec["containers"])] == [
        "prepare",
        "postgresql",
        "keeper",
    ]
    for container in (*spec["initContainers"], *spec["containers"]):
        assert container["image"] == "registry.example.org/postgresql:1"
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"]
        assert container["resources"]["limits"]["memory"]
        writable = {mount["name"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert writable <= {"data", "socket", "tmp", "memory"}
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in spec["volumes"]}


def test_the_image_fits_the_pod(rendered: Json) -> None:
    """User, data folder and programs are those of the recipe; the program knows every verb and variable."""
    recipe = (PROJECT / "services/postgresql/Containerfile").read_text()
    program = (PROJECT / "services/postgresql/postgres_pod.py").read_text()
    spec = pod(rendered)
    assert f"USER {spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}" in recipe
    (mount,) = [each for each in spec["containers"][0]["volumeMounts"] if each["name"] == "data"]
    assert f"PGDATA={mount['mountPath']}/data" in recipe
    assert "STOPSIGNAL SIGINT" in recipe
    for container in (*spec["initContainers"], *spec["containers"]):
        assert all(f'"{each["name"]}"' in program for each in container["env"])
        assert all(isinstance(each["value"], str) for each in container["env"])
        if container["command"][0] == "python3":
            assert f'case ["{container["command"][2]}"]' in program
    for place in ("archive", "restore/request.json", "tls/tls.crt"):
        assert f'"/etc/postgresql/{place}"' in program


def test_ports_fit(rendered: Json) -> None:
    """Service, container and flow name one port."""
    (port,) = pod(rendered)["containers"][0]["ports"]
    assert port == {"name": "postgresql", "containerPort": 5432}
    assert find(rendered, "Service")["spec"]["ports"] == [
        {"name": "postgresql", "port": 5432, "targetPort": "postgresql"}
    ]
    assert {flow["name"]: flow.get("ports") for flow in rendered["flows"]} == {
        "consumers": [5432],
        "archive": [9000],
        "names": None,
    }


def test_consumers_come_in_from_their_namespaces(rendered: Json, other: Json, tmp_path: Path) -> None:
    """And nobody else; a component that is not installed is none. Without any there is no flow inwards at all."""
    assert rendered["names"] == ["model-registry", "shop"]
    (flow,) = [each for each in rendered["flows"] if "from" in each]
    assert flow["from"] == [{"namespace": ["model-registry", "shop-dev", "shop-prod"]}]
    assert len(policies(rendered["flows"], "postgresql", ADDRESSES)) == 4
    assert other["names"] == []
    assert [each["name"] for each in other["flows"]] == ["archive", "names"]


def test_what_the_server_reads(rendered: Json, other: Json) -> None:
    """A site's settings come first, so that TLS, access and archive stay; another setting starts the server again."""
    data = find(other, "ConfigMap")["data"]
    settings = data["settings.conf"].splitlines()
    assert "shared_buffers = '1GB'" in settings
    assert "application_name = 'it''s'" in settings
    assert "log_connections = 'True'" in settings
    assert "max_connections = '100'" in settings
    lines = [line for line in data["postgresql.conf"].splitlines() if line and not line.startswith("#")]
    assert lines[0] == "include 'settings.conf'"
    assert "ssl = on" in lines
    access = [line.split() for line in data["pg_hba.conf"].splitlines() if not line.startswith("#")]
    assert access == [
        ["local", "all", "postgres", "peer"],
        ["hostssl", "samerole", "+slipway_consumers", "all", "scram-sha-256"],
    ]
    templates = [find(each, "StatefulSet")["spec"]["template"]["metadata"] for each in (rendered, other)]
    assert templates[0]["annotations"] != templates[1]["annotations"]


def test_fixed_settings_are_those_of_the_file(rendered: Json) -> None:
    """precheck refuses to set what the role's own file sets afterwards, and where the data is."""
    source = (PROJECT / "plugins/filter/postgresql.py").read_text()
    block = re.search(r"FIXED = \((.*?)\)", source, re.DOTALL)
    assert block
    fixed = set(re.findall(r'"(\w+)"', block[1]))
    text = find(rendered, "ConfigMap")["data"]["postgresql.conf"]
    assert set(re.findall(r"^(\w+) = ", text, re.MULTILINE)) == fixed - {"data_directory"}


def test_faults_are_named(rendered: Json, other: Json) -> None:
    """Each option that cannot be used, and what is missing."""
    assert rendered["faults"] == []
    assert [fault.split(":")[0].split(" is ")[0] for fault in other["faults"]] == [
        "postgresql_provider",
        "postgresql_settings",
        "postgresql_backup_keep_days",
    ]
    assert "needs cert_manager in slipway_components" in other["faults"][0]


def test_who_signs(rendered: Json, other: Json) -> None:
    """The site's authority; where a public one signs the site's pages, one that only signs this server's certificate."""
    (certificate,) = rendered["certificates"]
    assert certificate["spec"]["issuerRef"] == {"kind": "ClusterIssuer", "name": "slipway"}
    assert "postgresql.postgresql.svc" in certificate["spec"]["dnsNames"]
    made = {(item["kind"], item["metadata"]["name"]): item["spec"] for item in other["certificates"]}
    assert made["Certificate", "postgresql-tls"]["issuerRef"] == {"kind": "Issuer", "name": "postgresql"}
    assert made["Issuer", "postgresql"] == {"ca": {"secretName": made["Certificate", "postgresql-ca"]["secretName"]}}
