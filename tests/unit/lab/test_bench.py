"""What the benchmark decides and computes; its runs need a lab."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.bench import __main__ as bench
from tests.bench import command, light, official, up
from tests.lab.site import Site, site_of


@pytest.mark.parametrize(
    ("wanted", "copy", "parts"),
    [
        ("", "", ["up", "scale"]),
        ("", "/k3s-ansible", ["up", "scale", "official"]),
        ("official scale", "/k3s-ansible", ["scale", "official"]),
        ("up", "/k3s-ansible", ["up"]),
    ],
)
def test_parts_are_chosen(wanted: str, copy: str, parts: list[str]) -> None:
    assert bench.chosen(wanted, copy) == parts


@pytest.mark.parametrize(
    ("wanted", "message"), [("up fast", r"no part fast; there are up,"), ("official", "needs K3S_ANSIBLE=")]
)
def test_bad_parts_are_named(wanted: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        bench.chosen(wanted, "")


@pytest.mark.parametrize(
    ("wanted", "available_mb", "number"),
    [("", 100_000, light.MOST), ("", light.OTHERS_MB + 5 * light.AGENT_MB, 6), ("40", 100, 40)],
)
def test_memory_decides_how_many_nodes(wanted: str, available_mb: int, number: int) -> None:
    assert light.count(wanted, available_mb) == number


@pytest.mark.parametrize(
    ("wanted", "available_mb", "message"),
    [("3", 100_000, "BENCH_NODES=3: must"), ("many", 100_000, "BENCH_NODES=many"), ("", 3000, "3000 MB of memory")],
)
def test_too_few_nodes_are_refused(wanted: str, available_mb: int, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        light.count(wanted, available_mb)


def test_memory_is_read() -> None:
    assert light.available_mb() > 0


def site(number: int, state: Path = Path("/state")) -> Site:
    """The site of an inventory of so many nodes, as Ansible lists it."""
    children = light.groups(number)["k3s_cluster"]["children"]
    hosts = {name: host for group in children.values() for name, host in group["hosts"].items()}
    listed = {"_meta": {"hostvars": hosts}, "k3s_cluster": {"hosts": list(hosts)}}
    found = site_of(light.NAME, listed, Path("hosts.yml"))
    return Site(found.name, found.nodes, state, found.gpus)


@pytest.mark.parametrize("number", [light.FEW, light.LIMIT])
def test_nodes_have_addresses_of_one_network(number: int) -> None:
    nodes = site(number).nodes
    assert len(nodes) == number
    assert nodes["server-1"] == ipaddress.IPv4Address("10.77.3.11")


def measured(nodes: int, preflight: float, first: float, prepare: float, judge: float, second: float) -> dict[str, Any]:
    """What light.install returns."""
    plays = {"Judge the cluster": judge, "Prepare all nodes": prepare}
    return {
        "nodes": nodes,
        "preflight": preflight,
        "first": {"seconds": first, "plays": plays},
        "second": {"seconds": second, "plays": plays},
    }


def test_growth_by_phase() -> None:
    result = light.scale(measured(3, 2, 40, 10, 0.1, 8), measured(12, 4, 100, 35, 0.4, 12))
    assert result["growth"] == {
        "preflight": 2,
        "cluster, first run": 2.5,
        "Prepare all nodes": 3.5,
        "cluster, second run": 1.5,
    }
    lines = light.table(result)
    assert [line.split() for line in lines if "Prepare all nodes" in line] == [
        ["Prepare", "all", "nodes", "10.0", "35.0", "3.50"]
    ]
    assert next(line for line in lines if "Judge" in line).split() == ["Judge", "the", "cluster", "0.1", "0.4"]
    assert lines[-1] == "there are 4.0 times as many nodes"


def copy_of_playbooks(folder: Path) -> Path:
    """What is needed of the official playbooks, with nothing in it."""
    for name in official.NEEDED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("version: 1.2.2\n")
    return folder


def test_a_copy_of_the_official_playbooks_tells_its_version(tmp_path: Path) -> None:
    assert official.check(copy_of_playbooks(tmp_path)) == "1.2.2"


@pytest.mark.parametrize("name", official.NEEDED)
def test_what_is_missing_in_the_copy_is_named(tmp_path: Path, name: str) -> None:
    (copy_of_playbooks(tmp_path) / name).unlink()
    with pytest.raises(SystemExit, match=f"K3S_ANSIBLE={tmp_path}: there is no {name} in it"):
        official.check(tmp_path)


def test_both_place_the_same_archives() -> None:
    artifacts = [
        {"path": "bin/k3s", "kind": "binary", "name": "k3s"},
        {"path": "images/k3s.tar", "kind": "images", "name": "k3s"},
        {"path": "images/argocd.tar", "kind": "images", "name": "argocd", "component": "argocd"},
    ]
    assert official.archives({"artifacts": artifacts}) == ["images/k3s.tar"]


def test_official_playbooks_get_the_same_nodes_and_settings(tmp_path: Path) -> None:
    nodes = light.Light(site(light.FEW, tmp_path / "state"), tmp_path)
    nodes.inventory.mkdir()
    (nodes.inventory / "hosts.yml").write_text(yaml.safe_dump(light.groups(light.FEW)))
    cluster = official.inventory(nodes, "v1.2.3+k3s1", tmp_path / "airgap")["k3s_cluster"]
    assert cluster["children"] == light.groups(light.FEW)["k3s_cluster"]["children"]
    variables = cluster["vars"]
    assert variables["api_endpoint"] == "10.77.3.11"
    assert variables["kubeconfig"] == str(tmp_path / "kubeconfig")
    assert len(variables["token"]) == 64
    ours = yaml.safe_load(light.SETTINGS.read_text())["k3s_node_config"]
    for role in ("server", "agent"):
        assert yaml.safe_load(variables[f"{role}_config_yaml"]) == ours


def test_their_cluster_is_awaited_as_ours_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = light.Light(site(light.FEW, tmp_path / "state"), tmp_path)
    monkeypatch.setattr(official, "KubeClient", lambda _: None)
    monkeypatch.setattr(official, "await_ready", lambda _, wanted, *__, **___: [wanted])
    with pytest.raises(SystemExit) as refusal:
        official.await_cluster(nodes)
    assert "'server-1', 'agent-1', 'agent-2'" in str(refusal.value)
    assert "('kube-system', 'Deployment', 'coredns')" in str(refusal.value)
    monkeypatch.setattr(official, "await_ready", lambda *_, **__: [])
    assert official.await_cluster(nodes) < 1


def test_ratios_are_held_against_the_goals() -> None:
    theirs = {"first": {"seconds": 80.0, "until_ready": 100.0}, "second": {"seconds": 40.0, "until_ready": 40.0}}
    result = official.compare("1.2.2", measured(3, 2, 40, 10, 0.1, 12), theirs)
    assert (result["first"]["ratio"], result["first"]["ratio_until_ready"]) == (0.5, 0.4)
    assert result["second"]["ratio"] == 0.3
    lines = official.table(result)
    assert "k3s-ansible 1.2.2" in lines[0]
    assert lines[1].split() == ["first", "run", "40.0", "80.0", "0.50", "0.60"]
    assert lines[3].split() == ["second", "run", "12.0", "40.0", "0.30", "0.25", "missed"]


def test_table_of_both_runs() -> None:
    def of_run(seconds: float) -> dict[str, Any]:
        return {"seconds": seconds, "plays": {"Platform": seconds / 2}, "roles": {"minio": seconds / 4}}

    pipeline = {"seconds": 90.0, "tasks": {"train": 60.0}, "overhead": 30.0}
    figures = {"first": of_run(400), "second": of_run(100), "pipeline": pipeline, "ratio": 0.25}
    lines = [line.split() for line in up.table(figures)]
    assert ["play", "Platform", "200.0", "50.0"] in lines
    assert ["task", "train", "60.0"] in lines
    assert lines[-1][-4:] == ["0.25", "of", "the", "first"]


def test_a_command_that_fails_ends_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "bench.log"
    monkeypatch.setattr(command, "LOG", log)
    script = "import os, sys; print(os.environ['WORD']); sys.exit(int(os.environ['WORD']))"
    assert command.seconds([sys.executable, "-c", script], WORD="0") > 0
    with pytest.raises(SystemExit, match=f"failed; see {log}"):
        command.seconds([sys.executable, "-c", script], tmp_path, WORD="3")
    assert log.read_text().splitlines() == ["0", "3"]
