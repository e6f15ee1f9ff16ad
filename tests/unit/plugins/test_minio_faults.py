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

minio_faults = FilterModule().filters()["minio_faults"]
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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (tenant(reed=["epos-models"]), "reed"),
        (tenant(expire=[{"bucket": "shop", "dais": 3}]), "dais"),
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
        "_minio_tenants": [tenant(buckets=["Data"]), tenant(name="mall", read=["shopp"])],
        "_minio_volume": {"resources": [CLAIM]},
        "minio_storage_size": "1Gi",
    }
    done = run_playbook(tmp_path, "-i", "localhost,", "play.yml", "-e", json.dumps(variables))
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    for text in ("bucket 'Data' may hold lower case", "bucket 'shopp' belongs to no tenant", "A volume cannot shrink"):
        assert text in said, said
