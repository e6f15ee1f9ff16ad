"""An audit of the nodes in the manner of kube-bench: what runs, with which arguments, on which files, and what it refuses.

Numbers are those of the CIS Kubernetes Benchmark (1.11), as k3s' self-assessment has them. What is not held here is in docs/hardening.md.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.contract.conftest import DATA, Kubectl, Node, wait_for

CONFIG = "/etc/rancher/k3s"


def arguments(node: Node, component: str) -> dict[str, str]:
    """Flags of a component: of its own process, or of k3s' own words where it runs inside k3s."""
    found = node.try_run(f"cat /proc/$(pgrep -o -f '^[^ ]*{component} --')/cmdline")
    if found.rc == 0:
        words = found.out.split("\0")
    else:
        words = node.run(
            f"journalctl -u {node.unit} --no-pager -o cat | grep 'Running {component} ' | tail -n 1"
        ).split()
    flags = [word.strip('"').removeprefix("--").partition("=") for word in words if word.startswith("--")]
    assert flags, f"{node.name}: {component} does not run"
    return {name: value for name, _, value in flags}


@pytest.fixture(scope="module", params=["kube-apiserver", "kube-controller-manager", "kube-scheduler"])
def component(request: pytest.FixtureRequest, server: Node) -> tuple[str, dict[str, str]]:
    """A component of the control plane and its flags."""
    return request.param, arguments(server, request.param)


# For each component flags and what their values must match; None: the flag must not be there.
FLAGS: dict[str, dict[str, str | None]] = {
    "kube-apiserver": {
        "anonymous-auth": "false",  # 1.2.1
        "token-auth-file": None,  # 1.2.2
        "kubelet-client-certificate": f"{DATA}/.+",  # 1.2.4
        "kubelet-client-key": f"{DATA}/.+",
        "kubelet-certificate-authority": f"{DATA}/.+",  # 1.2.5
        "authorization-mode": "Node,RBAC",  # 1.2.6 to 1.2.8
        "enable-admission-plugins": r"(?!.*AlwaysAdmit)(?=.*\bNodeRestriction\b).*\bEventRateLimit\b.*",  # 1.2.9 to 1.2.15
        "disable-admission-plugins": None,
        "admission-control-config-file": "/.+",
        "profiling": "false",  # 1.2.15
        "audit-log-path": f"{DATA}/server/logs/.+",  # 1.2.16
        "audit-log-maxage": r"[3-9]\d|\d{3,}",  # 1.2.17
        "audit-log-maxbackup": r"\d{2,}",  # 1.2.18
        "audit-log-maxsize": r"\d{3,}",  # 1.2.19
        "audit-policy-file": "/.+",  # 3.2.1
        "service-account-key-file": f"{DATA}/.+",  # 1.2.22
        "service-account-extend-token-expiration": "false",
        "etcd-certfile": f"{DATA}/.+",  # 1.2.23
        "etcd-keyfile": f"{DATA}/.+",
        "tls-cert-file": f"{DATA}/.+",  # 1.2.24
        "tls-private-key-file": f"{DATA}/.+",
        "client-ca-file": f"{DATA}/.+",  # 1.2.25
        "etcd-cafile": f"{DATA}/.+",  # 1.2.26
        "encryption-provider-config": f"{DATA}/.+",  # 1.2.27
    },
    "kube-controller-manager": {
        "terminated-pod-gc-threshold": r"[1-9]\d{0,3}",  # 1.3.1; Kubernetes' own is 12500
        "profiling": "false",  # 1.3.2
        "use-service-account-credentials": "true",  # 1.3.3
        "service-account-private-key-file": f"{DATA}/.+",  # 1.3.4
        "root-ca-file": f"{DATA}/.+",  # 1.3.5
        "bind-address": r"127\.0\.0\.1",  # 1.3.7
    },
    "kube-scheduler": {"profiling": "false", "bind-address": r"127\.0\.0\.1"},  # 1.4.1, 1.4.2
}


def test_arguments_of_the_control_plane(component: tuple[str, dict[str, str]]) -> None:
    """1.2 to 1.4, 3.2: each flag is there with a safe value."""
    name, found = component
    wrong = {
        flag: found.get(flag)
        for flag, wanted in FLAGS[name].items()
        if (flag in found) is (wanted is None) or (wanted is not None and not re.fullmatch(wanted, found[flag]))
    }
    assert not wrong, f"{name}: {wrong}"


def test_files_that_the_api_server_is_given_are_there(server: Node) -> None:
    """Policy, admission and encryption are read at its start only."""
    flags = arguments(server, "kube-apiserver")
    policy = yaml.safe_load(server.run(f"cat {flags['audit-policy-file']}"))
    levels = {rule["level"] for rule in policy["rules"]}
    # 3.2.2: nothing but metadata of Secrets; here of anything.
    assert levels <= {"None", "Metadata"} and policy["rules"][-1] == {"level": "Metadata"}
    admission = yaml.safe_load(server.run(f"cat {flags['admission-control-config-file']}"))
    assert {plugin["name"] for plugin in admission["plugins"]} >= {"PodSecurity", "EventRateLimit"}
    encryption = json.loads(server.run(f"cat {flags['encryption-provider-config']}"))
    first, *_ = encryption["resources"][0]["providers"]
    assert encryption["resources"][0]["resources"] == ["secrets"] and "identity" not in first


def test_etcd_asks_for_certificates(server: Node, agent: Node) -> None:
    """2.1 to 2.6: clients and members need one of its own authorities."""
    config = yaml.safe_load(server.run(f"cat {DATA}/server/db/etcd/config"))
    for side in ("client-transport-security", "peer-transport-security"):
        assert config[side]["client-cert-auth"] is True and config[side]["trusted-ca-file"].startswith(DATA)
        assert not config[side].get("auto-tls")
    for port in (2379, 2380):
        assert agent.try_run(f"curl -sk --max-time 5 https://{server.address}:{port}/health").rc not in (0, 28)


def test_ports_that_tell_without_asking_are_closed(nodes: list[Node], agent: Node) -> None:
    """4.2.4, 1.3.7, 1.4.2: no read-only port, and what controllers and etcd measure is for their own machine."""
    for node in nodes:
        other = agent if node.role == "server" else nodes[0]
        for port in (10255, 10248, 10249, *((10257, 10259, 2381) if node.role == "server" else ())):
            found = other.try_run(f"curl -sk --max-time 5 http://{node.address}:{port}/metrics")
            assert found.rc == 7, f"{node.name}:{port}: {found}"


@pytest.fixture(scope="module")
def kubelets(kubectl: Kubectl, node_names: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The configuration that each kubelet runs with, as it says itself."""
    return {
        name: json.loads(kubectl(f"get --raw /api/v1/nodes/{node}/proxy/configz"))["kubeletconfig"]
        for name, node in node_names.items()
    }


def test_kubelets(nodes: list[Node], kubelets: dict[str, dict[str, Any]]) -> None:
    """4.2: who may ask, over which ciphers, for how long."""
    for node in nodes:
        config = kubelets[node.name]
        assert config["authentication"]["anonymous"]["enabled"] is False  # 4.2.1
        assert config["authorization"]["mode"] == "Webhook"  # 4.2.2
        assert config["authentication"]["x509"]["clientCAFile"].startswith(DATA)  # 4.2.3
        assert not config.get("readOnlyPort")  # 4.2.4
        assert config["streamingConnectionIdleTimeout"] not in ("0", "0s", "4h0m0s")  # 4.2.5
        assert config["makeIPTablesUtilChains"] is True  # 4.2.6
        assert config["tlsCertFile"] and config["tlsPrivateKeyFile"]  # 4.2.9
        assert config["tlsCipherSuites"] and not [
            name for name in config["tlsCipherSuites"] if "ECDHE" not in name or "CBC" in name
        ]  # 4.2.12
        # A container's kernel is its machine's, and set by nobody in here.
        if node.try_run("systemd-detect-virt --quiet --container").rc != 0:
            assert config.get("protectKernelDefaults") is True


def test_kubelets_refuse_old_ciphers(nodes: list[Node], server: Node) -> None:
    """4.2.12, from outside: those of TLS 1.2 that come without authentication of what they encrypt."""
    for node in nodes:
        curl = f"curl -sk --max-time 5 --tls-max 1.2 %s -o /dev/null https://{node.address}:10250/pods"
        assert server.try_run(curl % "").rc == 0
        assert server.try_run(curl % "--ciphers ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA").rc == 35


# For each role of node patterns and what at most a mode may be; each pattern must match something.
MODES = {
    "server": {
        **dict.fromkeys((f"{CONFIG}/{name}" for name in ("token", "agent-token", "admission.yaml", "audit-policy.yaml", "k3s.yaml")), 0o600),
        f"{DATA}/server/token": 0o600,
        f"{DATA}/server/manifests": 0o700,  # 1.1.1 to 1.1.8: k3s has no manifests of static pods; these are its own
        f"{DATA}/server/db/etcd": 0o700,  # 1.1.11
        f"{DATA}/server/cred/*": 0o600,  # 1.1.13 to 1.1.18
        f"{DATA}/server/tls": 0o700,  # 1.1.19
        f"{DATA}/server/tls/*.crt": 0o644,  # 1.1.20; nobody else enters the folder
        f"{DATA}/server/tls/*.key": 0o600,  # 1.1.21
        f"{DATA}/server/tls/etcd/*.key": 0o600,
        f"{DATA}/server/logs": 0o700,
        f"{DATA}/server/logs/audit.log": 0o600,
    },
    "agent": {},
    "any": {
        f"{CONFIG}/config.yaml": 0o600,
        "/etc/rancher/node/password": 0o600,
        "/etc/systemd/system/k3s*.service": 0o644,  # 4.1.1
        f"{DATA}/agent": 0o700,
        f"{DATA}/agent/*.kubeconfig": 0o644,  # 4.1.3, 4.1.5; nobody else enters the folder
        f"{DATA}/agent/*.key": 0o600,
        f"{DATA}/agent/client-ca.crt": 0o644,  # 4.1.7
        f"{DATA}/agent/etc/kubelet.conf.d/*": 0o600,  # 4.1.9
    },
}  # fmt: skip


def test_files(nodes: list[Node]) -> None:
    """1.1, 4.1: modes are no wider than these, and everything is root's."""
    wrong = []
    for node in nodes:
        for pattern, most in {**MODES["any"], **MODES[node.role]}.items():
            for line in node.run(f"stat -c '%a %U:%G %F %n' {pattern}").splitlines():
                mode, owner, rest = line.split(" ", 2)
                if rest.startswith("symbolic link"):
                    continue
                if int(mode, 8) & ~most or owner != "root:root":
                    wrong.append(f"{node.name}: {line}, want {most:o} root:root")
    assert not wrong, "\n".join(wrong)


def test_nobody_else_enters_the_data(nodes: list[Node]) -> None:
    """What lies wider than 0600 there is read by root alone."""
    for node in nodes:
        for path in (
            *([f"{DATA}/server/tls/server-ca.crt"] if node.role == "server" else []),
            f"{DATA}/agent/client-ca.crt",
        ):
            assert node.try_run(f"setpriv --reuid=65534 --regid=65534 --clear-groups cat {path}").rc != 0


def test_the_audit_log_has_who_and_what_but_no_secret(server: Node, kubectl: Kubectl) -> None:
    """3.2: a Secret that is made is in the log with user, verb and answer, and what it holds is not."""
    name, mark = f"contract-audit-{secrets.token_hex(4)}", secrets.token_hex(16)
    log = f"{DATA}/server/logs/audit.log"
    manifest = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"key": mark}}
    try:
        kubectl("create -n default -f -", json.dumps(manifest))
        kubectl(f"get secret {name} -n default -o yaml")
        lines = wait_for(
            "the event", lambda: server.try_run(f'grep -F {name} {log} | grep -F \'"verb":"get"\'').out, 30
        )
        events = [json.loads(line) for line in server.run(f"grep -hF {name} {log}").splitlines()]
        assert lines and {event["verb"] for event in events} >= {"create", "get"}
        made = next(event for event in events if event["verb"] == "create")
        assert (made["level"], made["user"]["username"], made["responseStatus"]["code"]) == (
            "Metadata",
            "system:admin",
            201,
        )
        assert not [event for event in events if "requestObject" in event or "responseObject" in event]
        for text in (mark, base64.b64encode(mark.encode()).decode()):
            assert server.try_run(f"grep -qF {text} {log}").rc == 1
    finally:
        kubectl(f"delete secret {name} -n default --ignore-not-found")


@pytest.fixture(scope="module")
def bare_namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace about which nobody has said anything."""
    name = "contract-hardening"
    kubectl(f"create namespace {name}")
    try:
        yield name
    finally:
        kubectl(f"delete namespace {name} --wait=false")


@pytest.mark.parametrize(
    ("what", "more"),
    [
        ("privileged", {"containers": [{"name": "a", "image": "a", "securityContext": {"privileged": True}}]}),  # 5.2.2
        ("hostPID", {"hostPID": True}),  # 5.2.3
        ("hostIPC", {"hostIPC": True}),  # 5.2.4
        ("hostNetwork", {"hostNetwork": True}),  # 5.2.5
        ("hostPath", {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),  # 5.2.12
    ],
)
def test_pods_that_would_own_the_node_are_refused(
    server: Node, bare_namespace: str, what: str, more: dict[str, Any]
) -> None:
    """5.2: by default; a namespace may say otherwise by its label."""
    spec = {"containers": [{"name": "a", "image": "a"}], "automountServiceAccountToken": False}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec}
    create = f"k3s kubectl create --dry-run=server -n {bare_namespace} -f -"

    def allowed() -> bool:
        """Whether the pod itself is; a new namespace gets its service account a moment later."""
        return server.try_run(create, json.dumps(pod).encode()).rc == 0

    wait_for("a plain pod", allowed, timeout=30)
    refused = server.try_run(create, json.dumps({**pod, "spec": {**spec, **more}}).encode())
    assert refused.rc != 0 and 'violates PodSecurity "baseline' in refused.err, what


def test_administration_is_bound_to_nobody_else(kubectl: Kubectl) -> None:
    """5.1.1: cluster-admin is for the group of administrators and k3s' own helpers."""
    items = json.loads(kubectl("get clusterrolebinding -o json"))["items"]
    subjects = {
        f"{subject['kind']}/{subject['name']}"
        for item in items
        if item["roleRef"]["name"] == "cluster-admin"
        for subject in item.get("subjects") or []
    }
    assert "Group/system:masters" in subjects
    assert not [
        each
        for each in subjects
        if each
        in (
            "Group/system:authenticated",
            "Group/system:unauthenticated",
            "User/system:anonymous",
            "ServiceAccount/default",
        )
    ]
