"""What the components need is held against what the nodes have: each refusal names component, need, node and variable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible.module_utils.slipway.capacity import (
    GIB,
    MIB,
    Cluster,
    Need,
    Pods,
    Room,
    Volume,
    judge_capacity,
    known_claims,
    plan,
    read_cluster,
    read_need,
    room_of,
)
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.gpus import Declared
from ansible.module_utils.slipway.kube import KubeError
from ansible.module_utils.slipway.needs import amount, object_needs, part_needs, requests, values_needs
from ansible.module_utils.slipway.preflight import Node, Problem

from filter import needs as filters
from modules import preflight_report

from .conftest import PLUGINS
from .fakes import run_module

STORE = Need(
    "minio",
    "minio",
    (Pods("minio", 1, 0.25, 512 * MIB, "minio_values.resources"),),
    (Volume("minio", 100 * GIB, "minio_storage_size"),),
)
AGENTS = Need("monitoring", "monitoring", (Pods("exporter", 1, 0.1, 64 * MIB, "exporter_resources", True),))
ROOM = Room("server-1", 4.0, 8.0 * GIB, disk=200.0 * GIB)
FRESH: Mapping[tuple[str, str], float] = {}


def found(problems: list[Problem]) -> list[tuple[str, str, str]]:
    """Node, what was found and the remedy."""
    assert all((each.severity, each.check) == ("error", "capacity") for each in problems)
    return [(each.node, each.found, each.remedy) for each in problems]


# Needs


@pytest.mark.parametrize(
    ("text", "number"),
    [("500m", 0.5), (2, 2), ("1.5", 1.5), ("2Gi", 2 * GIB), ("1k", 1000), ("1e3", 1000), ("1E", 1e18), ("128M", 128e6)],
)
def test_quantities(text: Any, number: float) -> None:
    assert amount(text, "here") == number


@pytest.mark.parametrize("text", ["2GB", "", "-1", "1,5", "Gi", None])
def test_no_quantities(text: Any) -> None:
    with pytest.raises(
        SlipwayError, match=r"minio_storage_size: .* is not a Kubernetes quantity such as 500m, 2Gi or 10"
    ):
        amount(text, "minio_storage_size")


def test_requests() -> None:
    assert requests({"requests": {"cpu": "10m"}, "limits": {"cpu": "1", "memory": "1Ki"}}, "x") == (0.01, 1024)
    assert requests(None, "x") == requests({}, "x") == requests({"requests": None}, "x") == (0, 0)


def workload(kind: str, **spec: Any) -> dict[str, Any]:
    def container(name: str, cpu: str, memory: str) -> dict[str, Any]:
        return {"name": name, "resources": {"requests": {"cpu": cpu, "memory": memory}}}

    pod = {
        "initContainers": [container("prepare", "1", "10Mi")],
        "containers": [container("a", "100m", "20Mi"), container("b", "50m", "30Mi")],
    }
    return {"kind": kind, "metadata": {"name": kind.lower()}, "spec": {**spec, "template": {"spec": pod}}}


def test_needs_of_objects() -> None:
    objects = [workload("Deployment", replicas=0), workload("DaemonSet"), workload("StatefulSet"), workload("Job")]
    needs = object_needs([*objects, {"kind": "Service", "metadata": {"name": "s"}}], "x_resources")
    assert [(each["name"], each["count"], each["per_node"]) for each in needs] == [
        ("deployment", 0, False),
        ("daemonset", 1, True),
        ("statefulset", 1, False),
    ]
    # Containers together, or the largest of those before them.
    assert {(each["cpu"], each["memory"], each["variable"]) for each in needs} == {(1.0, 50 * MIB, "x_resources")}


def test_needs_of_values() -> None:
    resources = {"requests": {"cpu": 1, "memory": "1Gi"}}
    values = {
        "replicas": 2,
        "resources": resources,
        "web": {"hook": {"replicaCount": 3, "resources": resources}},
        "off": {"enabled": False, "resources": resources},
    }
    needs = values_needs(values, ["", "web.hook", "off", "none"], "x_values")
    assert [(each["name"], each["count"], each["cpu"]) for each in needs] == [
        ("the chart", 2, 1),
        ("web.hook", 3, 1),
        ("none", 1, 0),
    ]


def test_a_wrong_request_names_its_place() -> None:
    with pytest.raises(SlipwayError, match=r"argocd_resources\.server: memory: '1GB' is not a Kubernetes quantity"):
        part_needs({"server": {"requests": {"memory": "1GB"}}}, "argocd_resources")
    with pytest.raises(AnsibleFilterError, match="is not a Kubernetes quantity"):
        filters.FilterModule().filters()["part_needs"]({"server": {"limits": {"cpu": "x"}}}, "argocd_resources")


def test_what_a_role_says() -> None:
    given = {"pods": part_needs({"a": {}}, "v"), "volumes": [{"name": "c", "size": "2Gi", "variable": "x_size"}]}
    need = read_need("front_door", given, True)
    assert (need.namespace, need.pods, need.volumes) == (
        "front-door",
        (Pods("a", 1, 0, 0, "v"),),
        (Volume("c", 2 * GIB, "x_size"),),
    )
    assert read_need("k3s", {"namespace": "kube-system"}, True).namespace == "kube-system"
    assert not read_need("new", None, True).known
    with pytest.raises(SlipwayError, match="x_size: '2Gb'"):
        read_need("git", {"volumes": [{"name": "c", "size": "2Gb", "variable": "x_size"}]}, True)


@pytest.mark.parametrize(
    ("storage_class", "local_storage", "local"),
    [("", True, True), ("local-path", True, True), ("ceph", True, False), ("", False, False)],
)
def test_only_k3s_own_class_lies_on_the_nodes(storage_class: str, local_storage: bool, local: bool) -> None:
    volume = {"name": "c", "size": "1Gi", "class": storage_class, "variable": "v"}
    assert read_need("git", {"volumes": [volume]}, local_storage).volumes[0].local is local


# Refusals


def test_what_fits_is_no_problem() -> None:
    assert judge_capacity([STORE, AGENTS], [ROOM], FRESH) == []


def test_a_pod_that_no_node_can_hold() -> None:
    small = replace(ROOM, name="agent-1", memory=1.0 * GIB)
    large = Need("minio", "minio", (Pods("minio", 1, 0.25, 9 * GIB, "minio_values.resources"),))
    # One problem for it, and one for the sum, which is not there either.
    first, *_ = judge_capacity([large], [ROOM, small], FRESH)
    assert found([first]) == [
        (
            "server-1",
            "minio: a pod of minio needs 0.25 CPUs and 9.0 GiB; server-1, the largest, has 4 CPUs and 8.0 GiB for it",
            "lower minio_values.resources, or use a larger machine",
        )
    ]


def test_cpu_and_memory_must_be_on_one_node() -> None:
    rooms = [Room("a", 8.0, 1.0 * GIB), Room("b", 1.0, 8.0 * GIB)]
    need = Need("x", "x", (Pods("x", 1, 4, 4 * GIB, "x_resources"),))
    (problem,) = judge_capacity([need], rooms, None)
    assert "a pod of x needs 4 CPUs and 4.0 GiB" in problem.found


def test_what_runs_on_each_node_must_fit_on_each() -> None:
    full = Room("agent-1", 4.0, 8.0 * GIB, cpu_held=3.95)
    (problem,) = judge_capacity([AGENTS], [ROOM, full], None)
    assert problem.node == "agent-1" and "has 0.05 CPUs" in problem.found


def test_the_sum_of_all() -> None:
    needs = [Need(name, name, (Pods(name, 3, 1, GIB, f"{name}_resources"),)) for name in ("one", "two")]
    assert found(
        judge_capacity(needs, [replace(ROOM, cpu_held=0.5), replace(ROOM, name="agent-1", cpu=2.0)], FRESH)
    ) == [
        (
            "controller",
            "the components reserve 6 CPUs (one 3, two 3); there are 5.5 (server-1 3.5, agent-1 2)",
            "lower one_resources, two_resources, take components out of slipway_components, or add a node",
        )
    ]


def test_nodes_for_gpus_only_hold_no_components() -> None:
    rooms = [replace(ROOM, cpu=0.1), replace(ROOM, name="gpu-a", cpu=64.0, open=False)]
    assert {each.node for each in judge_capacity([STORE], rooms, FRESH)} == {"server-1", "controller"}


def test_nothing_is_refused_that_nobody_knows() -> None:
    huge = Need("x", "x", (Pods("x", 1, 99, 99 * GIB, "v"),), (Volume("v", 999 * GIB, "v"),))
    assert judge_capacity([huge], [ROOM, Room("away")], FRESH) == []
    assert judge_capacity([huge], [Room("server-1", 100.0, 100.0 * GIB, disk=GIB)], None) == []


def test_volumes() -> None:
    assert found(judge_capacity([STORE], [replace(ROOM, disk=90.0 * GIB, images=10.0 * GIB)], FRESH)) == [
        (
            "server-1",
            "minio: volume minio needs 100.0 GiB; server-1, the node with most, has 60.0 GiB besides the images",
            "lower minio_storage_size, or enlarge the file system of /var/lib/rancher",
        )
    ]
    many = Need("git", "git", (), tuple(Volume(f"v{number}", 80 * GIB, "git_storage_size") for number in range(3)))
    assert found(judge_capacity([many], [ROOM], FRESH)) == [
        (
            "controller",
            "volumes need 240.0 GiB (git 80.0 GiB, git 80.0 GiB, git 80.0 GiB); besides the images there are 200.0 GiB "
            "(server-1 200.0 GiB)",
            "lower git_storage_size, or enlarge the file systems of /var/lib/rancher",
        )
    ]


def test_a_volume_that_is_there_needs_room_to_grow_only() -> None:
    tight = replace(ROOM, disk=5.0 * GIB)
    assert judge_capacity([STORE], [tight], {("minio", "minio"): 100.0 * GIB}) == []
    (problem,) = judge_capacity([STORE], [tight], {("minio", "minio"): 90.0 * GIB})
    assert "volume minio needs 10.0 GiB" in problem.found
    elsewhere = replace(STORE, volumes=(replace(STORE.volumes[0], local=False),))
    assert judge_capacity([elsewhere], [tight], FRESH) == []


def test_images() -> None:
    full = replace(ROOM, disk=10.0 * GIB, images=4.0 * GIB, archives=3)
    assert found(judge_capacity([], [full], None)) == [
        (
            "server-1",
            "images of 4.0 GiB to transfer take 12.0 GiB with what is unpacked, 10.0 GiB are free",
            "enlarge the file system of /var/lib/rancher, or take components out of slipway_components",
        )
    ]
    assert judge_capacity([], [replace(full, images=0.0, disk=0.0)], None) == []


# What is there


def probed(**changes: Any) -> Node:
    found: dict[str, Any] = {
        "cpus": 2,
        "memory_mb": 4096,
        "disks": [{"path": "/var/lib/kubelet", "free_gb": 1}, {"path": "/var/lib/rancher", "free_gb": 40}],
        "k3s": {"state": "none", "found": [], "files": ["aa"]},
    }
    return Node("server-1", "server", probe={**found, **changes})


IMAGES = [{"sha256": "aa", "size": GIB}, {"sha256": "bb", "size": 2 * GIB}]


def pod(
    name: str, namespace: str, cpu: str, node: str = "server-1", phase: str = "Running", restart: str = "Always"
) -> dict[str, Any]:
    container = {"resources": {"requests": {"cpu": cpu, "memory": "1Gi"}}}
    spec = {"containers": [container], "restartPolicy": restart, **({"nodeName": node} if node else {})}
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec, "status": {"phase": phase}}


NODES = [{"metadata": {"name": "server-1"}, "status": {"allocatable": {"cpu": "1900m", "memory": "3Gi"}}}]
CLAIMS = [
    {"metadata": {"namespace": "minio", "name": "minio"}, "spec": {"resources": {"requests": {"storage": "2Gi"}}}}
]


def cluster(*pods: dict[str, Any]) -> Cluster:
    return read_cluster(NODES, pods, CLAIMS)


def test_a_machine_before_k3s() -> None:
    assert room_of(probed(), [STORE], None, IMAGES) == Room(
        "server-1", 2.0, 4.0 * GIB, disk=40.0 * GIB, images=2.0 * GIB, archives=1
    )
    assert room_of(Node("away", "agent"), [STORE], None, IMAGES) == Room("away", images=3.0 * GIB, archives=2)


def test_a_node_of_the_cluster_without_what_others_hold() -> None:
    """Pods of the components count by their need, what is over, ends by itself or has no node not at all."""
    pods = [
        pod("minio", "minio", "900m"),
        pod("theirs", "epos-dev", "300m"),
        pod("more", "shop", "100m"),
        pod("over", "shop", "1", phase="Succeeded"),
        pod("waits", "shop", "1", node=""),
        pod("training", "epos", "1", restart="Never"),
    ]
    room = room_of(probed(), [STORE], cluster(*pods), [])
    assert (room.cpu, room.memory, round(room.cpu_held, 3), room.memory_held) == (1.9, 3 * GIB, 0.4, 2 * GIB)
    assert known_claims([probed()], cluster()) == {("minio", "minio"): 2 * GIB}


def test_a_full_node_where_all_runs_is_no_problem() -> None:
    """Nothing is counted twice: a component that holds what it needs goes on."""
    need = Need("minio", "minio", (Pods("minio", 1, 1.5, GIB, "v"),))
    room = room_of(probed(), [need], cluster(pod("minio", "minio", "1500m"), pod("model", "epos-dev", "400m")), [])
    assert judge_capacity([need], [room], FRESH) == []
    assert judge_capacity([replace(need, pods=(Pods("minio", 1, 1.6, GIB, "v"),))], [room], FRESH)


def test_a_node_with_a_taint_for_gpus() -> None:
    assert not room_of(replace(probed(), gpus=Declared(gpus=1, taint=True)), [], None, []).open
    assert room_of(replace(probed(), gpus=Declared(gpus=1)), [], None, []).open


def test_claims_are_none_only_where_k3s_never_ran() -> None:
    assert known_claims([probed()], None) == {}
    assert known_claims([probed(), Node("away", "agent")], None) is None
    kept = {"state": "none", "found": ["/var/lib/rancher/k3s/server/db"]}
    assert known_claims([probed(k3s=kept)], None) is None
    assert known_claims([probed(k3s={"state": "ours", "found": []})], None) is None


# The table


def test_the_table() -> None:
    rooms = [replace(ROOM, cpu_held=0.5, images=3.4 * GIB, archives=9), Room("agent-1")]
    text = plan([STORE, AGENTS, Need("new", "new", known=False)], rooms, {("minio", "minio"): 60.0 * GIB})
    assert text.splitlines() == [
        "needed by       CPUs              memory    volumes           of it new",
        "minio           0.25             512 MiB  100.0 GiB            40.0 GiB",
        "monitoring       0.2             128 MiB          -                   -",
        "new                ?                   ?          ?                   ?",
        "together        0.45             640 MiB  100.0 GiB",
        "free on         CPUs              memory       disk  images to transfer",
        "server-1    3.5 of 4  8.0 GiB of 8.0 GiB  200.0 GiB        3.4 GiB in 9",
        "agent-1            ?                   ?          ?                none",
    ]
    assert "?" in plan([STORE], [ROOM], None).splitlines()[1]


# The module


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    """As the action part gives them, with a bundle of one archive."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/images.tar").write_bytes(b"x" * MIB)
    head = {"schema": 1, "release": "r", "origin": "lab", "arch": "amd64", "versions": {}, "images": {}}
    (tmp_path / "bundle/bundle.yml").write_text(yaml.safe_dump({**head, "artifacts": []}))
    (tmp_path / "kubeconfig").write_text("{}")
    return {
        "nodes": [],
        "needs": {
            "minio": {
                "pods": [{"name": "minio", "count": 1, "cpu": 1.5, "memory": GIB, "variable": "minio_values.resources"}]
            },
            "new": None,
        },
        "images": [
            {"sha256": "aa", "src": str(tmp_path / "bundle/images.tar")},
            {"sha256": "bb", "src": str(tmp_path / "bundle/missing.tar")},
        ],
        "requirements": {
            "min_memory_mb": 1, "min_cpus": 1, "min_disk_gb": 1, "min_disk_gb_installed": 1, "max_clock_skew_seconds": 1,
            "allow_even_servers": True,
        },
        "roles": str(PLUGINS.parent / "roles"),
        "site_defaults": str(PLUGINS.parent / "playbooks/group_vars"),
        "bundle": str(tmp_path / "bundle"),
        "kubeconfig": str(tmp_path / "kubeconfig"),
        "report": str(tmp_path / "report/preflight.json"),
    }  # fmt: skip


class FakeKube:
    """An API with one node that a pod of somebody else fills."""

    def __init__(self, kubeconfig: str, timeout: float) -> None:
        assert timeout <= 5

    def get(self, path: str) -> Any:
        lists = {"nodes": NODES, "pods": [pod("theirs", "shop", "1")], "persistentvolumeclaims": CLAIMS}
        return {"items": lists[path.rsplit("/", 1)[1]]}


class DeadKube(FakeKube):
    """One that does not answer."""

    def get(self, path: str) -> Any:
        raise KubeError("nobody there")


def test_the_report_holds_the_plan(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_report, "KubeClient", FakeKube)
    arguments["nodes"] = [{"name": "server-1", "role": "server"}]
    result = run_module(preflight_report, arguments)
    assert "needed by" in result["table"] and "1 MiB in 1" in result["table"]
    found = [each["found"] for each in result["problems"] if each["check"] == "capacity"]
    assert found == [
        "the components reserve 1.5 CPUs (minio 1.5); there are 0.9 (server-1 0.9)",
        "minio: a pod of minio needs 1.5 CPUs and 1.0 GiB; server-1, the largest, has 0.9 CPUs and 2.0 GiB for it",
    ]
    report = json.loads(Path(arguments["report"]).read_text())
    assert [each["component"] for each in report["plan"]["needs"]] == ["minio", "new"]
    assert report["plan"]["nodes"][0]["cpu_held"] == 1.0


def test_a_cluster_that_does_not_answer_is_none(arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_report, "KubeClient", DeadKube)
    assert preflight_report.look(arguments["kubeconfig"]) is None
    assert preflight_report.look(None) is None
    assert preflight_report.look(arguments["kubeconfig"] + ".none") is None


def test_what_cannot_be_found_out_is_named(arguments: dict[str, Any]) -> None:
    arguments["needs"] = {"git": "git_storage_size is undefined", "minio": {"volumes": [VOLUME]}}
    arguments["kubeconfig"] = None
    found = [
        each["found"] for each in run_module(preflight_report, arguments)["problems"] if each["check"] == "capacity"
    ]
    assert found == [
        "git: git_storage_size is undefined",
        "minio: minio_storage_size: '2GB' is not a Kubernetes quantity such as 500m, 2Gi or 10",
    ]
    # Where the bundle is what is missing, that is said once.
    Path(arguments["bundle"], "bundle.yml").unlink()
    assert {each["check"] for each in run_module(preflight_report, arguments)["problems"]} >= {"bundle"}
    assert "capacity" not in {each["check"] for each in run_module(preflight_report, arguments)["problems"]}


VOLUME = {"name": "minio", "size": "2GB", "class": "", "variable": "minio_storage_size"}
