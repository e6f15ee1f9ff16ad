"""What is to be done about a Helm release, from its record, its chart and the cluster."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.helm import drifted, read_chart, read_record, same_values
from ansible.module_utils.slipway.kube import Json

from .fakes import FakeObjects

SECRETS = "/api/v1/namespaces/store/secrets"
CONFIG = "/api/v1/namespaces/store/configmaps/page"
MANIFEST = [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "page"}, "data": {"k": "v"}}, None]


def record(version: int, status: str = "deployed", **values: Any) -> Json:
    """Return the Secret of one revision."""
    release = {
        "info": {"status": status},
        "chart": {"metadata": {"name": "minio", "version": "5.4.0"}},
        "config": values,
        "manifest": yaml.safe_dump_all(MANIFEST),
    }
    packed = base64.b64encode(base64.b64encode(gzip.compress(json.dumps(release).encode()))).decode()
    name = f"sh.helm.release.v1.minio.v{version}"
    return {"metadata": {"name": name, "labels": {"version": str(version)}}, "data": {"release": packed}}


def cluster(*secrets: Json) -> FakeObjects:
    kube = FakeObjects()
    kube.objects[SECRETS] = {"items": list(secrets)}
    return kube


def test_the_newest_revision_counts_by_its_number() -> None:
    found = read_record(cluster(record(10, "failed", size=1), record(9)), "minio", "store")
    assert found is not None
    assert (found.secret, found.status, found.values) == ("sh.helm.release.v1.minio.v10", "failed", {"size": 1})
    assert found.chart == ("minio", "5.4.0")
    assert [item["kind"] for item in found.objects] == ["ConfigMap"]


def test_no_record_is_no_release_and_a_broken_one_is_named() -> None:
    assert read_record(cluster(), "minio", "store") is None
    broken = record(1)
    broken["data"]["release"] = "eA=="
    with pytest.raises(SlipwayError, match=r"Secret store/sh\.helm\.release\.v1\.minio\.v1, Helm's record"):
        read_record(cluster(broken), "minio", "store")


def test_missing_and_changed_objects_are_found_as_helm_makes_them() -> None:
    kube = cluster(record(1))
    found = read_record(kube, "minio", "store")
    assert found is not None
    ((identity, wanted),) = drifted(kube, found, "minio", "store")
    assert str(identity) == "ConfigMap store/page"
    assert wanted["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "Helm"}
    assert wanted["metadata"]["annotations"]["meta.helm.sh/release-name"] == "minio"

    kube.apply(CONFIG, wanted, "helm")
    assert list(drifted(kube, found, "minio", "store")) == []
    kube.objects[CONFIG]["data"]["k"] = "by hand"
    assert [str(each) for each, _ in drifted(kube, found, "minio", "store")] == ["ConfigMap store/page"]
    assert kube.objects[CONFIG]["data"]["k"] == "by hand"


def test_null_is_a_key_that_is_not_there() -> None:
    assert same_values({"a": {"b": None}, "c": [1]}, {"a": {}, "c": [1]})
    assert not same_values({"a": {"b": 1}}, {"a": {}})
    assert not same_values({"c": [1, 2]}, {"c": [1]})


def pack(path: Path, name: str, text: str) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text.encode()))
    return path


def test_name_and_version_of_a_chart(tmp_path: Path) -> None:
    chart = pack(tmp_path / "a.tgz", "minio/Chart.yaml", "name: minio\nversion: 5.4.0\n")
    assert read_chart(chart) == ("minio", "5.4.0")
    # A chart inside of the chart does not count.
    with pytest.raises(SlipwayError, match=r"no Chart\.yaml in it"):
        read_chart(pack(tmp_path / "b.tgz", "minio/charts/x/Chart.yaml", "name: x\nversion: 1\n"))
    with pytest.raises(SlipwayError, match=r"c\.tgz"):
        read_chart(tmp_path / "c.tgz")
