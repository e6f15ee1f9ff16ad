"""Access to the nodes of an installed site over SSH, for tests that hold the k3s command to what its documentation says.

The inventory is named by $SLIPWAY_INVENTORY (default inventories/lab/hosts.yml); keys and host keys are those of the site
of that name under .slipway. The tests restore what they change.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DATA = "/var/lib/rancher/k3s"
TIMEOUT_S = 90.0


@dataclass(frozen=True)
class Result:
    """What a command on a node gave."""

    rc: int
    out: str
    err: str


@dataclass(frozen=True)
class Node:
    """A machine of the site."""

    name: str
    address: str
    role: str
    state: Path
    user: str

    @property
    def unit(self) -> str:
        """The systemd unit of k3s on this node."""
        return "k3s" if self.role == "server" else "k3s-agent"

    def try_run(self, command: str, stdin: bytes | None = None, timeout: float = TIMEOUT_S) -> Result:
        """Run a shell command as root; any exit status is fine."""
        ssh: list[str | Path] = [
            "ssh", "-i", self.state / "ssh" / "id_ed25519", "-o", f"UserKnownHostsFile={self.state / 'known_hosts'}",
            "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "ControlMaster=auto", "-o", "ControlPersist=60",
            "-o", f"ControlPath={self.state / 'ssh' / 'contract-%h'}", f"{self.user}@{self.address}",
            f"sudo sh -c {shlex.quote(command)}",
        ]  # fmt: skip
        done = subprocess.run(ssh, input=stdin or b"", capture_output=True, timeout=timeout, check=False)
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    def run(self, command: str, stdin: bytes | None = None, timeout: float = TIMEOUT_S) -> str:
        """Run a shell command as root and return what it printed; it must succeed."""
        result = self.try_run(command, stdin, timeout)
        assert result.rc == 0, f"{self.name}: {command}: exit {result.rc}\n{result.out}\n{result.err}"
        return result.out

    def write(self, path: str, content: str | bytes, mode: str = "600") -> None:
        """Write a file."""
        data = content.encode() if isinstance(content, str) else content
        self.run(f"cat > {path} && chmod {mode} {path}", data)

    def journal(self, cursor: str) -> str:
        """The log of k3s after a cursor."""
        return self.run(f"journalctl -u {self.unit} --no-pager -o cat --after-cursor {shlex.quote(cursor)}")

    def journal_cursor(self) -> str:
        """The present end of the log."""
        shown = self.run(f"journalctl -u {self.unit} -n 0 --show-cursor --no-pager")
        return shown.rsplit("-- cursor: ", 1)[1].strip()


def wait_for(what: str, condition: Callable[[], Any], timeout: float = TIMEOUT_S, interval: float = 0.5) -> Any:
    """Wait until a condition gives something true, and return that."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {timeout:.0f} s: {what}"
        time.sleep(interval)


@pytest.fixture(scope="session")
def nodes() -> list[Node]:
    """All nodes of the site."""
    inventory = Path(os.environ.get("SLIPWAY_INVENTORY", ROOT / "inventories" / "lab" / "hosts.yml")).resolve()
    state = ROOT / ".slipway" / inventory.parent.name
    if not state.exists():
        pytest.skip(f"site {inventory.parent.name} is not installed")
    groups = yaml.safe_load(inventory.read_text())["k3s_cluster"]["children"]
    return [
        Node(name, values.get("ansible_host", name), role, state, values.get("ansible_user", "ops"))
        for role in ("server", "agent")
        for name, values in (groups.get(role, {}).get("hosts") or {}).items()
    ]


@pytest.fixture(scope="session")
def server(nodes: list[Node]) -> Node:
    """The first server."""
    return next(node for node in nodes if node.role == "server")


@pytest.fixture(scope="session")
def agent(nodes: list[Node]) -> Node:
    """The first agent; tests that need one are skipped without."""
    found = next((node for node in nodes if node.role == "agent"), None)
    if found is None:
        pytest.skip("this site has no agent")
    return found


Kubectl = Callable[..., str]


@pytest.fixture(scope="session")
def kubectl(server: Node) -> Kubectl:
    """Run kubectl on the server as administrator."""

    def call(arguments: str, stdin: str | None = None) -> str:
        return server.run(f"k3s kubectl {arguments}", stdin.encode() if stdin else None)

    return call


@pytest.fixture(scope="session")
def node_names(kubectl: Kubectl, nodes: list[Node]) -> dict[str, str]:
    """Names of the Kubernetes nodes by the names of the machines."""
    items = json.loads(kubectl("get node -o json"))["items"]
    by_address = {
        address["address"]: item["metadata"]["name"]
        for item in items
        for address in item["status"]["addresses"]
        if address["type"] == "InternalIP"
    }
    return {node.name: by_address[node.address] for node in nodes}


@pytest.fixture
def scratch(server: Node, agent: Node) -> Iterator[str]:
    """An empty directory on each node, removed afterwards."""
    path = f"/var/lib/rancher/contract-test-{os.getpid()}"
    for node in (server, agent):
        node.run(f"rm -rf {path} && mkdir -m 700 {path}")
    yield path
    for node in (server, agent):
        node.run(f"rm -rf {path}")


@pytest.fixture(scope="session")
def busybox(kubectl: Kubectl) -> str:
    """Reference of an image with a shell that is on every node: that of local-path-provisioner's helper pod."""
    config = json.loads(kubectl("get configmap local-path-config -n kube-system -o json"))
    image: str = yaml.safe_load(config["data"]["helperPod.yaml"])["spec"]["containers"][0]["image"]
    return image
