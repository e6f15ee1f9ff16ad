"""Several servers: k3s docs datastore/ha-embedded, cli/etcd-snapshot; facts parts 5, 6, 15 no. 1, 2, 7, 8 and 17.

They need a site with three servers and are skipped on one with fewer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.contract.conftest import DATA, Kubectl, Node, wait_for

pytestmark = pytest.mark.fault

WANTED = 3
# A server is promoted within 15 s; its API server and controllers come before and after that.
JOIN_TIMEOUT_S = 240.0
FINALIZER = "wrangler.cattle.io/managed-etcd-controller"
MEMBER = "etcd.k3s.cattle.io/node-name"


@dataclass(frozen=True)
class Servers:
    """The servers of a site with at least three: the one that the tests ask, and two that they may stop."""

    first: Node
    second: Node
    third: Node


@pytest.fixture(scope="module")
def servers(nodes: list[Node]) -> Servers:
    """Three servers; the tests are skipped on a site with fewer."""
    found = [node for node in nodes if node.role == "server"]
    if len(found) < WANTED:
        pytest.skip(f"this site has {len(found)} server(s), not {WANTED}: nothing is known about several servers")
    return Servers(*found[:WANTED])


@pytest.fixture
def stopped(servers: Servers) -> Iterator[Servers]:
    """Servers that a test may stop; all run and vote again afterwards."""
    yield servers
    for node in (servers.first, servers.second, servers.third):
        node.run("systemctl start --no-block k3s")
    for node in (servers.first, servers.second, servers.third):
        wait_for(
            f"k3s on {node.name}",
            lambda node=node: node.try_run("systemctl is-active k3s").rc == 0,  # type: ignore[misc]
            JOIN_TIMEOUT_S,
        )
    wait_for("votes of all servers", lambda: len(voters(servers.first)) >= WANTED, JOIN_TIMEOUT_S)


def server_nodes(asked: Node) -> list[dict[str, Any]]:
    """The Nodes of the servers, asked on one of them; none while its API does not answer."""
    shown = asked.try_run("k3s kubectl get node -l node-role.kubernetes.io/etcd=true -o json --request-timeout=10s")
    items: list[dict[str, Any]] = json.loads(shown.out)["items"] if shown.rc == 0 else []
    return items


def voters(asked: Node) -> list[str]:
    """Names of the Nodes whose condition EtcdIsVoter is True."""
    return [
        item["metadata"]["name"]
        for item in server_nodes(asked)
        if any(each["type"] == "EtcdIsVoter" and each["status"] == "True" for each in item["status"]["conditions"])
    ]


def writes(asked: Node) -> bool:
    """Whether the API of a server takes a change."""
    command = (
        "k3s kubectl create configmap contract-ha -n default --dry-run=client -o yaml"
        " | k3s kubectl apply --server-side --force-conflicts --request-timeout=10s -f -"
        " && k3s kubectl delete configmap contract-ha -n default --request-timeout=10s"
    )
    return asked.try_run(command).rc == 0


def attempt(node: Node, scratch: str, config: str, seconds: int = 30) -> tuple[int, str]:
    """Exit status and output of `k3s server` with a configuration and a data directory of its own."""
    node.write(f"{scratch}/config.yaml", config)
    result = node.try_run(f"timeout {seconds} k3s server --config {scratch}/config.yaml --data-dir {scratch}/data")
    return result.rc, result.out + result.err


def test_servers_share_their_authorities(servers: Servers) -> None:
    """Servers that joined have the CAs, the service account key and the token of the first (docs ha-embedded)."""
    command = (
        f"cd {DATA}/server && sha256sum tls/server-ca.crt tls/client-ca.key tls/service.key tls/etcd/peer-ca.key token"
    )
    first = servers.first.run(command)
    assert servers.second.run(command) == first
    assert servers.third.run(command) == first


def test_all_servers_vote(servers: Servers) -> None:
    """Each server's Node tells that its member votes, under a name of its own (facts part 5, 6)."""
    assert len(voters(servers.first)) >= WANTED
    members = [item["metadata"]["annotations"][MEMBER] for item in server_nodes(servers.first)]
    assert len(set(members)) == len(members)
    assert all(FINALIZER in item["metadata"].get("finalizers", []) for item in server_nodes(servers.first))


def test_agents_know_all_servers(servers: Servers, agent: Node) -> None:
    """The load balancer of an agent has learnt the servers, so that losing one does not matter (docs architecture)."""
    known = json.loads(agent.run(f"cat {DATA}/agent/etc/k3s-agent-load-balancer.json"))["ServerAddresses"]
    assert {f"{node.address}:6443" for node in (servers.first, servers.second, servers.third)} <= set(known)


def test_a_server_that_must_not_join_says_why(servers: Servers, agent: Node, scratch: str) -> None:
    """Token, CA hash and critical options are checked before anything is joined (docs cli/server, cli/token)."""
    join = f"server: https://{servers.first.address}:6443\nnode-name: contract-ha\n"
    token = servers.first.run(f"cat {DATA}/server/token").strip()
    for config, message in (
        (join, "K3S_TOKEN is required to join a cluster"),
        (f"{join}token: wrong\n", "401 Unauthorized"),
        (f"{join}token: K10{'0' * 64}::server:x\n", "token CA hash does not match the Cluster CA certificate hash"),
        (f"{join}token: {token}\ncluster-domain: other.local\n", "critical configuration value mismatch between servers"),
    ):  # fmt: skip
        rc, output = attempt(agent, scratch, config)
        assert rc == 1 and message in output, output
    assert "contract-ha" not in servers.first.run("k3s kubectl get node -o name")


def test_snapshots(servers: Servers) -> None:
    """Names get node and time, ls sees this server's own, retention leaves other names alone (docs cli/etcd-snapshot)."""
    saved = servers.first.try_run("k3s etcd-snapshot save --name contract")
    assert saved.rc == 0 and "saved." in saved.err
    try:
        listed = json.loads(servers.first.run("k3s etcd-snapshot ls -o json"))["items"]
        mine = [item["spec"] for item in listed if item["spec"]["snapshotName"].startswith("contract-")]
        assert len(mine) == 1
        name, location = mine[0]["snapshotName"], mine[0]["location"]
        assert f"Snapshot {name} saved." in saved.err
        assert servers.first.run(f"stat -c %a {location.removeprefix('file://')}").strip() == "600"
        assert name not in servers.second.run("k3s etcd-snapshot ls")
        servers.first.run("k3s etcd-snapshot prune --name no-such-prefix --snapshot-retention 1")
        assert name in servers.first.run("k3s etcd-snapshot ls")
    finally:
        servers.first.run(f"cd {DATA}/server/db/snapshots && ls | grep ^contract- | xargs k3s etcd-snapshot delete")
    assert "contract-" not in servers.first.run("k3s etcd-snapshot ls")


def test_a_reset_is_refused_while_the_server_runs(servers: Servers) -> None:
    """A cluster-reset needs a stopped server and no URL of another one (facts part 6)."""
    running = servers.first.try_run("timeout 60 k3s server --config /dev/null --cluster-reset")
    assert running.rc == 1 and "address already in use" in running.err
    joined = servers.first.try_run(
        "timeout 60 k3s server --config /dev/null --cluster-reset --server https://127.0.0.1:1 --token x"
    )
    assert joined.rc == 1 and "cannot perform cluster-reset while server URL is set" in joined.err


def test_one_server_may_stop_two_may_not(stopped: Servers) -> None:
    """Two of three votes are a quorum, one is none; a server that lost it does not become a cluster of its own."""
    stopped.third.run("systemctl stop k3s", timeout=120)
    wait_for("writes with two servers", lambda: writes(stopped.first), 60)
    stopped.second.run("systemctl stop k3s", timeout=120)
    wait_for("refusal with one server", lambda: not writes(stopped.first), 60)
    # Started again alone it waits for another vote: it does not get ready, and does not fail.
    stopped.first.run("systemctl restart --no-block k3s")
    wait_for(
        "an attempt",
        lambda: "ActiveState=activating" in stopped.first.run("systemctl show -p ActiveState k3s"),
        60,
    )
    assert not writes(stopped.first)
    stopped.second.run("systemctl start --no-block k3s")
    wait_for("writes with two servers again", lambda: writes(stopped.first), JOIN_TIMEOUT_S)


def test_a_removed_server_comes_back_as_a_new_member(
    stopped: Servers, kubectl: Kubectl, node_names: dict[str, str]
) -> None:
    """Deleting the Node of a stopped server removes its member; started again it joins with new data (facts part 6)."""
    name = node_names[stopped.third.name]
    before = kubectl(f"get node {name} -o jsonpath='{{.metadata.annotations}}'")
    member = json.loads(before)[MEMBER]
    stopped.third.run("systemctl stop k3s", timeout=120)
    kubectl(f"delete node {name} --timeout=60s")
    wait_for("two voters", lambda: name not in voters(stopped.first), 60)
    # Its old data are of no use: etcd tells it that it was removed, and the next start puts them aside.
    stopped.third.run("systemctl start --no-block k3s")
    wait_for("its vote", lambda: name in voters(stopped.first), JOIN_TIMEOUT_S)
    after = json.loads(kubectl(f"get node {name} -o jsonpath='{{.metadata.annotations}}'"))[MEMBER]
    assert after != member
    assert stopped.third.run(f"ls -d {DATA}/server/db/etcd-old-*")
