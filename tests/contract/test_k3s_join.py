"""How agents join and who is refused: k3s docs cli/token, architecture; facts parts 4, 5, 15 no. 3 and 9."""

from __future__ import annotations

import re

import pytest

from tests.contract.conftest import DATA, Kubectl, Node, wait_for

PORT = 7444


def attempt(agent: Node, scratch: str, config: str, seconds: int = 8) -> str:
    """What an agent with a configuration of its own says before it is ended; it must not give up by itself."""
    agent.write(f"{scratch}/config.yaml", config)
    command = f"k3s agent --config {scratch}/config.yaml --data-dir {scratch}/data --lb-server-port {PORT}"
    result = agent.try_run(f"timeout {seconds} {command}")
    assert "level=fatal" not in result.err, result.err
    return result.err


def agent_password(server: Node) -> str:
    """The agent token in its short form."""
    return server.run(f"cat {DATA}/server/agent-token").strip().rsplit(":", 1)[1]


def test_token_of_another_cluster(server: Node, agent: Node, scratch: str) -> None:
    """A token with another CA hash is refused and tried again and again (docs cli/token)."""
    log = attempt(agent, scratch, f"server: https://{server.address}:6443\ntoken: K10{'0' * 64}::node:x\n")
    assert f"Failed to validate connection to cluster at https://{server.address}:6443" in log
    assert re.search(
        rf"token CA hash does not match the Cluster CA certificate hash: {'0' * 64} != [0-9a-f]{{64}}", log
    )
    assert log.count("Failed to validate connection") > 1


def test_wrong_password(server: Node, agent: Node, scratch: str) -> None:
    """A wrong password is 401, and the agent waits for ever (facts part 4)."""
    log = attempt(agent, scratch, f"server: https://{server.address}:6443\ntoken: wrong\n")
    assert (
        "Waiting to retrieve agent configuration; server is not ready: failed to retrieve configuration from server"
        in log
    )
    assert f"https://127.0.0.1:{PORT}/v1-k3s/config" in log and "401 Unauthorized" in log


def test_node_name_stays_with_its_machine(server: Node, agent: Node, scratch: str, node_names: dict[str, str]) -> None:
    """A second machine under a known node name is refused by its node password (docs architecture)."""
    log = attempt(
        agent,
        scratch,
        f"server: https://{server.address}:6443\ntoken: {agent_password(server)}\nnode-name: {node_names[server.name]}\n",
    )
    assert "Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password'" in log


def test_start_of_a_refused_agent_blocks(server: Node, agent: Node, scratch: str) -> None:
    """A refused agent stays `activating`: it neither becomes active nor fails (facts part 15 no. 3)."""
    unit = "contract-refused"
    agent.write(f"{scratch}/config.yaml", f"server: https://{server.address}:6443\ntoken: wrong\n")
    command = (
        f"/usr/local/bin/k3s agent --config {scratch}/config.yaml --data-dir {scratch}/data --lb-server-port {PORT}"
    )
    agent.run(
        f"systemd-run --no-block --unit={unit} -p Type=notify -p KillMode=process -p Restart=always -p TimeoutStartSec=infinity {command}"
    )
    try:
        wait_for("its attempts", lambda: "401" in agent.run(f"journalctl -u {unit} --no-pager -o cat"), timeout=20)
        shown = agent.run(f"systemctl show -p ActiveState -p NRestarts {unit}")
        assert "ActiveState=activating" in shown and "NRestarts=0" in shown
    finally:
        agent.try_run(f"systemctl stop {unit}; systemctl reset-failed {unit}")


def test_password_secret_goes_with_its_node(kubectl: Kubectl) -> None:
    """Deleting a Node deletes its password, so that the name is free again (facts part 4)."""
    name = "contract-gone"
    secret = f"{name}.node-password.k3s"
    kubectl(f"create secret generic {secret} -n kube-system --from-literal=hash=x")
    kubectl("create -f -", f"{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}}}")
    kubectl(f"delete node {name}")
    wait_for("deletion", lambda: not kubectl(f"get secret {secret} -n kube-system --ignore-not-found"), timeout=15)


def test_each_node_has_a_password_secret(kubectl: Kubectl, node_names: dict[str, str]) -> None:
    """Hash of the node password in Secret <node>.node-password.k3s, immutable (docs architecture)."""
    for node in node_names.values():
        read = f"get secret {node}.node-password.k3s -n kube-system -o jsonpath='{{.immutable}}'"
        assert kubectl(read) == "true"


@pytest.mark.parametrize("secure", [False, True])
def test_bootstrap_tokens(server: Node, agent: Node, secure: bool) -> None:
    """`k3s token create` prints the secure form only, `list` ids only, `delete` what it deleted (docs cli/token)."""
    given = server.run("k3s token generate").strip() if secure else ""
    printed = server.run(f"k3s token create --ttl 5m --description contract {given}").strip()
    found = re.fullmatch(r"K10[0-9a-f]{64}::(([a-z0-9]{6})\.[a-z0-9]{16})", printed)
    assert found and (not given or found[1] == given)
    bearer, identifier = found[1], found[2]
    curl = f"curl -s -o /dev/null -w '%{{http_code}}' --cacert {DATA}/agent/server-ca.crt -K - https://{server.address}:6443/v1-k3s/config"
    header = f'header = "Authorization: Bearer {bearer}"\n'.encode()
    try:
        listed = server.run("k3s token list")
        assert listed.split("\n")[0].split()[:4] == ["TOKEN", "TTL", "EXPIRES", "USAGES"]
        assert identifier in listed and bearer not in listed
        assert agent.run(curl, header) == "200"
    finally:
        deleted = server.run(f"k3s token delete {identifier}").strip()
    assert deleted == f'bootstrap token "{identifier}" deleted'
    assert agent.run(curl, header) == "401"
