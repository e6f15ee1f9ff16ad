"""Files that k3s leaves on a server: k3s docs cli/token, cli/certificate, cluster-access, advanced; facts part 8."""

from __future__ import annotations

import hashlib

import pytest
import yaml

from tests.contract.conftest import DATA, Kubectl, Node


def test_version_has_two_lines_and_nodes_report_it(server: Node, kubectl: Kubectl) -> None:
    """`k3s --version` prints "k3s version vX (commit)" and the Go version; nodes show the same vX (k3s #8489)."""
    first, second = server.run("k3s --version").splitlines()
    assert first.startswith("k3s version v") and first.endswith(")")
    assert second.startswith("go version go1.")
    versions = kubectl("get node -o jsonpath='{.items[*].status.nodeInfo.kubeletVersion}'").split()
    assert set(versions) == {first.split()[2]}


def test_token_pins_the_ca(server: Node) -> None:
    """server/token is K10<SHA-256 of server-ca.crt>::server:<password>, 0600; node-token is a link to it (docs cli/token)."""
    ca = server.run(f"cat {DATA}/server/tls/server-ca.crt")
    token = server.run(f"cat {DATA}/server/token")
    assert token.startswith(f"K10{hashlib.sha256(ca.encode()).hexdigest()}::server:") and token.endswith("\n")
    assert server.run(f"readlink {DATA}/server/node-token").strip() == f"{DATA}/server/token"
    assert server.run(f"cat {DATA}/server/agent-token").startswith(token.split("::")[0])


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("server", "700"),
        ("agent", "700"),
        ("server/token", "600"),
        ("server/cred/passwd", "600"),
        ("server/tls/server-ca.crt", "644"),
        ("server/tls/server-ca.key", "600"),
        ("server/tls/client-ca.key", "600"),
        ("server/tls/service.key", "600"),
        ("server/db/etcd", "700"),
        ("server/db/etcd/name", "600"),
        ("agent/client-kubelet.key", "600"),
        ("agent/serving-kubelet.key", "600"),
    ],
)
def test_modes(server: Node, path: str, mode: str) -> None:
    """Secrets are readable by root alone, certificates by all (facts part 8)."""
    assert server.run(f"stat -c %a {DATA}/{path}").strip() == mode


def test_node_password(nodes: list[Node]) -> None:
    """Each node keeps 32 hex digits in /etc/rancher/node/password, 0600 (docs architecture)."""
    for node in nodes:
        password = node.run("cat /etc/rancher/node/password").strip()
        assert len(password) == 32 and int(password, 16) >= 0
        assert node.run("stat -c %a /etc/rancher/node/password").strip() == "600"


def test_kubeconfig_is_for_this_machine(server: Node) -> None:
    """k3s.yaml points at 127.0.0.1, names everything "default" and is 0600 unless set otherwise (docs cluster-access)."""
    config = yaml.safe_load(server.run("cat /etc/rancher/k3s/k3s.yaml"))
    assert config["clusters"][0]["cluster"]["server"].startswith("https://127.0.0.1:")
    assert config["clusters"][0]["name"] == config["users"][0]["name"] == config["current-context"] == "default"
    if "write-kubeconfig-mode" not in server.run("cat /etc/rancher/k3s/config.yaml"):
        assert server.run("stat -c %a /etc/rancher/k3s/k3s.yaml").strip() == "600"


def test_tools_are_unpacked_by_hash(nodes: list[Node]) -> None:
    """Tools lie in DATA/data/<sha>/bin, link "current" points there; CNI and containerd stay inside DATA (facts part 8)."""
    for node in nodes:
        target = node.run(f"readlink -f {DATA}/data/current").strip()
        assert len(target.rsplit("/", 1)[1]) == 64
        node.run(f"test -x {DATA}/data/current/bin/containerd-shim-runc-v2")
        node.run(f"test -s {DATA}/agent/etc/containerd/config.toml && test -d {DATA}/agent/containerd")
        node.run("test -S /run/k3s/containerd/containerd.sock")
        node.run("test ! -e /etc/cni/net.d && test ! -e /opt/cni/bin")


def test_ctr_and_kubectl_find_their_way(server: Node) -> None:
    """`k3s ctr` talks to k3s' own containerd, `k3s kubectl` uses k3s.yaml when nothing else is named (docs cli)."""
    assert "k8s.io" in server.run("k3s ctr namespaces ls -q")
    assert server.run("env -u KUBECONFIG k3s kubectl get --raw /readyz") == "ok"


def test_load_balancer_knows_the_server(agent: Node, server: Node) -> None:
    """Agents talk to 127.0.0.1:6444 and save the servers they learnt (docs architecture)."""
    saved = agent.run(f"cat {DATA}/agent/etc/k3s-agent-load-balancer.json")
    assert f"{server.address}:6443" in saved
    assert "127.0.0.1:6444" in agent.run(f"cat {DATA}/agent/kubelet.kubeconfig")
