"""What a site must not ask of MinIO is refused before anything is changed, with a message that names the tenant and the value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible.module_utils.slipway.variables import judge_values, load_known

from filter.minio import FilterModule

from .conftest import PLUGINS
from .plays import run_playbook

FILTERS = FilterModule().filters()
minio_faults = FILTERS["minio_faults"]
ROLE = PLUGINS.parent / "roles/minio"
DEFAULTS = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
CLAIM = {
    "metadata": {"namespace": "minio", "name": "minio"},
    "spec": {"resources": {"requests": {"storage": "100Gi"}}},
}
MESSAGES = {
    "a/b": "minio_tenants: tenant 'shop': bucket 'a/b' may hold lower case letters, digits, dots and hyphens only, "
    "a letter or digit at both ends",
    "ab": "minio_tenants: tenant 'shop': bucket 'ab' must have 3 to 63 characters",
    "Data": "minio_tenants: tenant 'shop': bucket 'Data' may hold lower case letters, digits, dots and hyphens only, "
    "a letter or digit at both ends",
    "10.0.0.1": "minio_tenants: tenant 'shop': bucket '10.0.0.1' must not look like an IP address",
    "epos-data": "minio_tenants: tenant 'shop': bucket 'epos-data' belongs to tenant 'epos' already",
}


def tenant(**changes: Any) -> dict[str, Any]:
    return {"name": "shop", "buckets": ["shop"], "secret": {"namespace": "shop", "name": "minio-shop"}, **changes}


def faults(*tenants: dict[str, Any], size: Any = "100Gi", claims: tuple[Any, ...] = (CLAIM,)) -> list[str]:
    found: list[str] = minio_faults([*DEFAULTS["minio_tenants"], *tenants], size, claims)
    return found


def test_the_defaults_are_good() -> None:
    assert faults() == faults(tenant()) == faults(claims=()) == faults(size="200Gi") == []


@pytest.mark.parametrize(("bucket", "message"), MESSAGES.items())
def test_a_name_that_s3_forbids_and_a_bucket_in_use(bucket: str, message: str) -> None:
    assert faults(tenant(buckets=[bucket])) == [message]


def test_a_policy_with_a_typo() -> None:
    assert faults(tenant(read=["epos-modles"])) == [
        "minio_tenants: tenant 'shop': read: bucket 'epos-modles' belongs to no tenant; did you mean epos-models?"
    ]
    assert faults(tenant(expire=[{"bucket": "shpo", "days": 3}])) == [
        "minio_tenants: tenant 'shop': expire: bucket 'shpo' is not its own"
    ]


def test_a_quota_that_is_no_quantity() -> None:
    assert faults(tenant(quota=[{"bucket": "shop", "size": "50GB"}])) == [
        "minio_tenants: tenant 'shop': quota: bucket 'shop': '50GB' is not a Kubernetes quantity such as 500m, 2Gi or 10"
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (tenant(reed=["epos-models"]), "reed"),
        (tenant(expire=[{"bucket": "shop", "dais": 3}]), "dais"),
        (tenant(quota=[{"bucket": "shop", "sise": "1Gi"}]), "sise"),
        (tenant(expire_versions=[{"bucket": "shop", "days": "soon"}]), "soon"),
        (tenant(secret={"namespace": "shop"}), "missing required arguments: name"),
    ],
)
def test_a_misspelt_key_is_preflights_to_refuse(given: dict[str, Any], message: str) -> None:
    known = load_known(PLUGINS.parent / "roles", PLUGINS.parent / "playbooks/group_vars")
    found = [each.found for each in judge_values({"server-1": {"minio_tenants": [given]}}, known, [])]
    assert any(message in each and "minio_tenants" in each for each in found), found


def test_a_shrinking_volume() -> None:
    assert faults(size="99.9Gi") == [
        "minio_storage_size is 99.9Gi, but the volume minio/minio already has 100Gi. A volume cannot shrink: raise the value to "
        "at least that."
    ]
    with pytest.raises(AnsibleFilterError, match="minio_storage_size: '100GB' is not a Kubernetes quantity"):
        faults(size="100GB")


def layout(claims: tuple[str, ...] = (), nodes: int = 9, size: str = "100Gi", **changes: Any) -> list[str]:
    """What is said of servers and drives; `nodes` take pods, one more does not."""
    options = {name: value for name, value in DEFAULTS.items() if name != "minio_tenants"}
    options |= {f"minio_{name}": value for name, value in changes.items()}
    there = [{"metadata": {"name": name}, "spec": {"resources": {"requests": {"storage": "100Gi"}}}} for name in claims]
    able: list[dict[str, Any]] = [{"spec": {}} for _ in range(nodes)]
    found: list[str] = FILTERS["minio_layout_faults"](
        {**options, "minio_storage_size": size}, there, [*able, {"spec": {"taints": [{"effect": "NoSchedule"}]}}]
    )
    return found


FOUR = tuple(f"export-minio-{server}" for server in range(4))
EIGHT = tuple(f"export-{drive}-minio-{server}" for server in range(4) for drive in range(2))


def test_layouts_that_are_good() -> None:
    assert layout() == layout(("minio", "somebody-elses")) == layout(mode="distributed") == []
    # Whether the nodes suffice is asked once.
    assert layout(FOUR, nodes=1, mode="distributed") == []
    assert layout(EIGHT, mode="distributed", drives_per_server=2) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"mode": "distributed", "servers": 3},
            "minio_servers is 3 with 1 drives each, 3 together: a distributed MinIO needs at least 4",
        ),
        ({"mode": "distributed", "servers": 1}, "minio_servers is 1 and minio_drives_per_server 1: at least 2 and 1"),
        (
            {"mode": "distributed", "servers": 17, "nodes": 20},
            "minio_servers times minio_drives_per_server is 17, which sets of 4 to 16 drives cannot share equally",
        ),
        (
            {"mode": "distributed", "nodes": 3},
            "minio_servers is 4, but only 3 nodes take pods: each server needs a node of its own",
        ),
        (
            {"claims": ("minio",), "mode": "distributed"},
            "minio_mode is distributed (4 servers with 1 drives each), but the volumes in namespace minio are those of standalone. MinIO "
            "cannot change that: set it back, or copy the data to another installation (mc mirror)",
        ),
        (
            {"claims": FOUR},
            "minio_mode is standalone, but the volumes in namespace minio are those of distributed (4 servers with 1 drives each). MinIO "
            "cannot change that: set it back, or copy the data to another installation (mc mirror)",
        ),
        (
            {"claims": FOUR, "mode": "distributed", "drives_per_server": 2},
            "minio_mode is distributed (4 servers with 2 drives each), but the volumes in namespace minio are those of distributed (4 servers "
            "with 1 drives each). MinIO cannot change that: set it back, or copy the data to another installation (mc mirror)",
        ),
        (
            {"claims": FOUR, "mode": "distributed", "size": "200Gi"},
            "minio_storage_size is 200Gi, but the volume export-minio-0 has 100Gi: those of a distributed MinIO keep their size",
        ),
        ({"mode": "cluster"}, "minio_mode is 'cluster', not standalone or distributed"),
        (
            {"values": {"replicas": 4}},
            "minio_values: replicas follows minio_mode, minio_servers and minio_drives_per_server",
        ),
    ],
)
def test_a_layout_that_cannot_be(given: dict[str, Any], message: str) -> None:
    assert layout(**given) == [message]


def test_who_runs_the_store_and_where() -> None:
    judge = FILTERS["minio_endpoint_faults"]
    assert judge("minio", "") == judge("external", "store.example.com:9000") == judge("external", "10.0.0.5:80") == []
    assert judge("minoi", "") == ["minio_provider is 'minoi', not minio or external"]
    assert judge("minio", "store:9000") == ["minio_external_endpoint is 'store:9000', but minio_provider is minio"]
    assert judge("external", "store.example.com") == [
        "minio_external_endpoint is 'store.example.com', not <host>:<port> such as store.example.com:9000."
    ]
    assert "Encryption" in judge("external", "https://store.example.com")[0]


def test_flows_lead_to_the_store_wherever_it_is() -> None:
    way = FILTERS["minio_way"]
    assert way("minio.minio.svc:9000") == {"to": [{"namespace": "minio", "pods": {"app": "minio"}}], "ports": [9000]}
    assert way("store.shared.svc:80") == {"to": [{"namespace": "shared"}]}
    assert way("store.example.com:9000") == {"to": ["outside"]}


def test_a_store_answers_once_an_endpoint_is_ready() -> None:
    answers = FILTERS["minio_answers"]
    ready, starting = {"conditions": {"ready": True}}, {"conditions": {"ready": False}}
    assert answers([{"endpoints": None}, {"endpoints": [starting, ready]}])
    assert not answers([{"endpoints": [starting]}, {}])


def test_the_precheck_says_all_of_it(tmp_path: Path) -> None:
    """As a run of the platform shows it, before the role changes anything."""
    tasks = yaml.safe_load((ROLE / "tasks/precheck.yml").read_text())
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "tasks": [task for task in tasks if "kubernetes.core.k8s_info" not in task],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    variables = {
        **yaml.safe_load((ROLE / "vars/main.yml").read_text()),
        "_minio_tenants": [tenant(buckets=["Data"]), tenant(name="mall", read=["shopp"])],
        "_minio_volumes": {"resources": [CLAIM]},
        **DEFAULTS,
        "minio_storage_size": "1Gi",
        "minio_mode": "distributed",
    }
    done = run_playbook(tmp_path, "-i", "localhost,", "play.yml", "-e", json.dumps(variables))
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    for text in (
        "bucket 'Data' may hold lower case",
        "bucket 'shopp' belongs to no tenant",
        "A volume cannot shrink",
        "MinIO cannot change that",
    ):
        assert text in said, said


def kept(name: str, size: str = "100Gi") -> dict[str, Any]:
    return {"metadata": {"labels": {"slipway/volume": name}}, "spec": {"capacity": {"storage": size}}}


def test_claims_of_a_former_minio_are_made_again() -> None:
    """They count as if they were there."""
    again = FILTERS["minio_kept"]
    assert again([kept("git.git-data"), kept("minio.minio")], []) == [CLAIM]
    assert again([kept("minio.minio")], [CLAIM]) == []
    (drive,) = again([kept("minio.export-minio-0")], [CLAIM])
    assert "are those of distributed" in layout(claims=(drive["metadata"]["name"],))[0]
    assert faults(size="1Gi", claims=tuple(again([kept("minio.minio")], []))) == faults(size="1Gi") != []


@pytest.mark.parametrize(
    ("namespaces", "said"),
    [
        (
            ["airflow", "epos", "minio", "postgresql"],
            "airflow, postgresql use MinIO, and nothing was changed. Uninstall them first",
        ),
        (["kubeflow-pipelines"], "kubeflow_pipelines uses MinIO, and nothing was changed. Uninstall it first"),
        (["epos-prod"], "Applications in epos-prod keep their keys, and have no store until"),
    ],
)
def test_who_uses_minio(tmp_path: Path, namespaces: list[str], said: str) -> None:
    """By what is there, also where it is not in the inventory any more."""
    tasks = yaml.safe_load((ROLE / "tasks/uninstall.yml").read_text())
    chosen = ("Refuse while other components use it", "Say what stays")
    play = {"hosts": "localhost", "gather_facts": False, "tasks": [task for task in tasks if task["name"] in chosen]}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    variables = {
        **yaml.safe_load((ROLE / "vars/main.yml").read_text()),
        **DEFAULTS,
        "_minio_found": {"resources": [{"metadata": {"name": name}} for name in namespaces]},
        "slipway_roles_dir": str(ROLE.parent),
    }
    done = run_playbook(tmp_path, "-i", "localhost,", "play.yml", "-e", json.dumps(variables))
    assert said in " ".join(done.stdout.split()), done.stdout
