"""Auto-deployed manifests and packaged components: k3s docs installation/packaged-components; facts part 10."""

from __future__ import annotations

import json

from tests.contract.conftest import DATA, Kubectl, Node, wait_for

MANIFEST = f"{DATA}/server/manifests/contract-test.yaml"
TEXT = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: contract-test, namespace: default}\ndata: {value: '%s'}\n"


def test_manifests_are_applied_and_kept(server: Node, kubectl: Kubectl) -> None:
    """A file is applied within 15 s and again when it changes; deleting it deletes nothing (docs packaged-components)."""
    read = "get configmap contract-test --ignore-not-found -o jsonpath={.data.value}"
    try:
        server.write(MANIFEST, TEXT % "one")
        wait_for("the object", lambda: kubectl(read) == "one", timeout=30)
        server.write(MANIFEST, TEXT % "two")
        wait_for("the change", lambda: kubectl(read) == "two", timeout=30)
        server.run(f"rm {MANIFEST}")
        assert kubectl(read) == "two"
    finally:
        server.run(f"rm -f {MANIFEST}")
        kubectl("delete configmap contract-test --ignore-not-found")


def test_packaged_components_run(server: Node, kubectl: Kubectl) -> None:
    """CoreDNS, local-path-provisioner, metrics-server and Traefik are Deployments in kube-system with manifests on the server."""
    disabled = server.run("cat /etc/rancher/k3s/config.yaml")
    for manifest, deployment in (
        ("coredns.yaml", "coredns"),
        ("local-storage.yaml", "local-path-provisioner"),
        ("metrics-server", "metrics-server"),
        ("traefik.yaml", "traefik"),
    ):
        if manifest.removesuffix(".yaml") in disabled:
            continue
        server.run(f"test -e {DATA}/server/manifests/{manifest}")
        kubectl(f"rollout status deployment/{deployment} -n kube-system --timeout=60s")


def test_default_storage_class_and_runtimes(kubectl: Kubectl) -> None:
    """local-path is the default class; RuntimeClasses exist whether or not their programs do (facts parts 10 and 13)."""
    classes = json.loads(kubectl("get storageclass -o json"))["items"]
    default = [
        item["metadata"]["name"]
        for item in classes
        if item["metadata"].get("annotations", {}).get("storageclass.kubernetes.io/is-default-class") == "true"
    ]
    assert default == ["local-path"]
    assert {"nvidia", "nvidia-cdi", "crun"} <= set(
        kubectl("get runtimeclass -o name").replace("runtimeclass.node.k8s.io/", "").split()
    )


def test_metrics_of_nodes(kubectl: Kubectl, node_names: dict[str, str]) -> None:
    """metrics-server measures every node through the aggregated API, by authenticated kubelets."""

    def measured() -> bool:
        items = json.loads(kubectl("get --raw /apis/metrics.k8s.io/v1beta1/nodes"))["items"]
        return {item["metadata"]["name"] for item in items} == set(node_names.values())

    wait_for("metrics of all nodes", measured, timeout=90, interval=3)
