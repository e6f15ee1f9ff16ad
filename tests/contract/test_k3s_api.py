"""What the port of a server answers, and to whom: k3s pkg/server/handlers/router.go, docs security."""

from __future__ import annotations

import json
import secrets

from tests.contract.conftest import DATA, Kubectl, Node, wait_for


def status(node: Node, arguments: str) -> int:
    """HTTP status of a curl call on a node, with the cluster's CA."""
    ca = f"{DATA}/server/tls/server-ca.crt" if node.role == "server" else f"{DATA}/agent/server-ca.crt"
    return int(node.run(f"curl -s -o /dev/null -w '%{{http_code}}' --cacert {ca} {arguments}"))


def test_open_and_closed_paths(server: Node, agent: Node) -> None:
    """/ping and /cacerts are open, every path of the API server is 401 without credentials (facts part 15 no. 16)."""
    url = f"https://{server.address}:6443"
    assert agent.run(f"curl -sk {url}/ping") == "pong"
    assert agent.run(f"curl -sk {url}/cacerts") == server.run(f"cat {DATA}/server/tls/server-ca.crt")
    for path in ("/healthz", "/livez", "/readyz", "/version", "/api/v1/namespaces", "/v1-k3s/config", "/v1-k3s/readyz"):
        assert status(agent, f"{url}{path}") == 401, path


def test_identity_headers_are_not_believed(server: Node, agent: Node) -> None:
    """Nobody but the front proxy itself may say who a request comes from."""
    forged = "-H 'X-Remote-User: system:admin' -H 'X-Remote-Group: system:masters'"
    assert status(agent, f"{forged} https://{server.address}:6443/api/v1/namespaces") == 401


def test_agent_credentials(server: Node, agent: Node) -> None:
    """/v1-k3s/config and /apiservers take user "node" with the agent token; a wrong password is 401 (router.go)."""
    password = server.run(f"cat {DATA}/server/agent-token").strip().rsplit(":", 1)[1]
    url = f"https://{server.address}:6443/v1-k3s"
    ca = f"--cacert {DATA}/agent/server-ca.crt"
    # By a file of curl options on stdin: secrets do not belong into argv.
    body = agent.run(f"curl -s {ca} -K - {url}/apiservers", b'user = "node:' + password.encode() + b'"\n')
    assert f"{server.address}:6443" in json.loads(body)
    assert status(agent, f"-u node:wrong {url}/apiservers") == 401


def test_nodes_may_not_do_more_than_nodes(server: Node, agent: Node, node_names: dict[str, str]) -> None:
    """Authorisation is Node,RBAC with NodeRestriction: a kubelet cannot change another node or read foreign Secrets."""
    kubectl = f"k3s kubectl --kubeconfig {DATA}/agent/kubelet.kubeconfig"
    agent.run(f"{kubectl} get node {node_names[agent.name]}")
    for command in (
        f"label node {node_names[server.name]} contract=test",
        f"label node {node_names[agent.name]} node-role.kubernetes.io/control-plane=true",
        "get secret -n kube-system",
        "get node",
    ):
        result = agent.try_run(f"{kubectl} {command}")
        assert result.rc != 0 and "forbidden" in result.err.lower(), command


def test_kubelets_ask_for_credentials(nodes: list[Node], server: Node) -> None:
    """Kubelets answer with a certificate of the cluster's server CA and refuse anonymous requests (docs hardening)."""
    for node in nodes:
        assert status(server, f"https://{node.address}:10250/pods") == 401


def test_secrets_are_encrypted_at_rest(server: Node, kubectl: Kubectl) -> None:
    """With secrets-encryption no Secret lies readable in the datastore; other objects do (docs security)."""
    marks = {kind: secrets.token_hex(16) for kind in ("secret", "configmap")}
    try:
        kubectl(f"create secret generic contract-at-rest --from-literal=a={marks['secret']}")
        kubectl(f"create configmap contract-at-rest --from-literal=a={marks['configmap']}")
        found = f"grep -rqa %s {DATA}/server/db/etcd/member"
        wait_for("the control in etcd's files", lambda: server.try_run(found % marks["configmap"]).rc == 0)
        if "secrets-encryption: true" in server.run("cat /etc/rancher/k3s/config.yaml").lower():
            assert server.try_run(found % marks["secret"]).rc == 1
    finally:
        kubectl("delete secret,configmap contract-at-rest --ignore-not-found")


def test_service_of_the_api_leads_to_the_supervisor(server: Node, kubectl: Kubectl) -> None:
    """Pods reach the API by the same port as everybody else (docs architecture)."""
    slices = json.loads(kubectl("get endpointslice kubernetes -o json"))
    assert slices["ports"][0]["port"] == 6443
    assert [endpoint["addresses"] for endpoint in slices["endpoints"]] == [[server.address]]


def test_node_roles_are_put_back(server: Node, kubectl: Kubectl, node_names: dict[str, str]) -> None:
    """Servers carry node-role labels that k3s restores (k3s pkg/etcd, facts part 5)."""
    label = "node-role.kubernetes.io/control-plane"
    node = node_names[server.name]
    kubectl(f"label node {node} {label}-")
    read = f"get node {node} -o jsonpath='{{.metadata.labels.{label.replace('.', chr(92) + '.')}}}'"
    wait_for("the label", lambda: kubectl(read) == "true", timeout=15)


def test_annotations_hide_secrets(server: Node, kubectl: Kubectl, node_names: dict[str, str]) -> None:
    """Annotation k3s.io/node-args shows the options of the node, secrets as asterisks (k3s pkg/nodeconfig)."""
    password = server.run(f"cat {DATA}/server/agent-token").strip().rsplit(":", 1)[1]
    for node in node_names.values():
        annotations = json.loads(kubectl(f"get node {node} -o json"))["metadata"]["annotations"]
        arguments = json.loads(annotations["k3s.io/node-args"])
        assert arguments[0] in ("server", "agent") and password not in json.dumps(annotations)
        assert all(
            arguments[i + 1] == "********" for i, text in enumerate(arguments) if text in ("--token", "--agent-token")
        )
