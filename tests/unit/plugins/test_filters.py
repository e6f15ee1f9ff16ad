"""Filters merge values as Helm does and take image references apart."""

from __future__ import annotations

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from filter.gpus import gpu_quotas, sharing_configs
from filter.slipway import FilterModule, bundle_file, chart_image, image_ref, merge_values


def test_mappings_merge_at_every_depth_and_the_rest_is_replaced() -> None:
    base = {"a": {"b": 1, "list": [1, 2]}, "keep": True}
    assert merge_values(base, {"a": {"c": 2, "list": [3]}}, {"keep": None, "new": {"x": 1}}) == {
        "a": {"b": 1, "c": 2, "list": [3]},
        "keep": None,
        "new": {"x": 1},
    }
    assert base == {"a": {"b": 1, "list": [1, 2]}, "keep": True}


def test_only_mappings_can_be_merged() -> None:
    with pytest.raises(AnsibleFilterError, match="str is no mapping"):
        merge_values({}, "a: 1")


DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("busybox", ("", "busybox", "busybox", "", "")),
        ("minio/minio:R1", ("", "minio/minio", "minio/minio", "R1", "")),
        ("localhost/slipway-lab/minio:1", ("localhost", "localhost/slipway-lab/minio", "slipway-lab/minio", "1", "")),
        (f"h.test:5000/a/b:1@{DIGEST}", ("h.test:5000", "h.test:5000/a/b", "a/b", "1", DIGEST)),
    ],
)
def test_image_references(reference: str, parts: tuple[str, ...]) -> None:
    assert tuple(image_ref(reference).values()) == parts


@pytest.mark.parametrize("reference", ["", "A/B", "a:", "a@sha256:1", "a b"])
def test_what_is_no_image_reference(reference: str) -> None:
    with pytest.raises(AnsibleFilterError, match="no image reference"):
        image_ref(reference)


def test_registered() -> None:
    names = {"merge_values", "image_ref", "chart_image", "bundle_file"}
    assert set(FilterModule().filters()) == names


def test_bundle_file_goes_into_a_folder_or_under_a_name() -> None:
    artifact = {"path": "images/minio.tar", "sha256": "ab"}
    file = {"src": "/b/images/minio.tar", "dest": "/d/minio.tar", "sha256": "ab", "mode": "0600"}
    assert bundle_file(artifact, "/b", "/d/", "0600") == file
    assert bundle_file(artifact, "/b", "/d/other", "0600") == {**file, "dest": "/d/other"}


def test_images_for_charts_that_join_three_parts() -> None:
    assert chart_image("nvcr.io/nvidia/gpu-operator:v1") == {
        "repository": "nvcr.io/nvidia",
        "image": "gpu-operator",
        "version": "v1",
    }
    for reference in ("busybox:1", "nvcr.io/nvidia/gpu-operator"):
        with pytest.raises(AnsibleFilterError, match="no repository or no tag"):
            chart_image(reference)


def test_quotas_name_the_resource_as_text() -> None:
    (quota,) = gpu_quotas({"epos": 3})
    assert quota["metadata"]["namespace"] == "epos"
    assert quota["spec"] == {"hard": {"requests.nvidia.com/gpu": "3"}}


def test_sharing_configurations() -> None:
    configs = sharing_configs([1, 16])
    assert list(configs) == [f"share-{number}" for number in (*range(1, 9), 16)]
    assert configs["share-1"] == "version: v1\n"
    assert yaml.safe_load(configs["share-16"])["sharing"]["timeSlicing"] == {
        "resources": [{"name": "nvidia.com/gpu", "replicas": 16}]
    }
    with pytest.raises(AnsibleFilterError, match="no number of pods"):
        sharing_configs([0])
