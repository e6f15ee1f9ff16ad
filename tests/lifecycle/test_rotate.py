"""Tokens, keys and certificates are changed under a client that asks on, and a controller that is interrupted."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from .conftest import BARE, Run, Site
from .polling import Client, asking, said

pytestmark = pytest.mark.timeout(2400)

# A client that asks both nodes five times a second may lose so many requests while one kind of secrets is changed, interruptions included.
MAY_BE_LOST = 5
# SLIPWAY_SEED tries other moments.
SEED = int(os.environ.get("SLIPWAY_SEED", "8"))
CONFIG, DATA = "/etc/rancher/k3s", "/var/lib/rancher/k3s"
CONFIRMED = (*BARE, "-e", "rotate_confirm=lab")
LEAVES = {
    "server-1": ("server/tls/serving-kube-apiserver", "server/tls/client-admin", "server/tls/etcd/server-client"),
    "agent-1": ("agent/client-kubelet", "agent/serving-kubelet", "agent/client-kube-proxy"),
}


@pytest.fixture
def client(cluster: Site) -> Iterator[Client]:
    """A client of a Service of two pods, while a test lasts."""
    with asking(cluster) as client:
        yield client


def rotate(site: Site, *kinds: str) -> Run:
    """Run rotate.yml, which must not fail."""
    run = site.playbook("rotate", *CONFIRMED, "-e", f"rotate={','.join(kinds)}")
    assert run.status == 0, run.output[-6000:]
    left = site.ssh("server-1", f"ls {CONFIG}")
    assert "rotation.json" not in left
    return run


def interrupt(site: Site, kind: str, task: str, seed: int) -> None:
    """Begin a rotation, and end the controller somewhere in this task or soon after."""
    delay = random.Random(seed).uniform(0, 2)
    print(f"seed {seed}: interrupted {delay:.1f} s into {task!r}")
    _, reached = site.interrupt(
        f"TASK [{task}]", delay, *site.playbook_words("rotate", *CONFIRMED, "-e", f"rotate={kind}")
    )
    assert reached
    # What a module does on a node, it does to its end.
    time.sleep(10)
    refused = site.playbook("cluster", *BARE)
    assert refused.status != 0
    assert f"A rotation of {kind} was interrupted" in said(refused), refused.output[-4000:]
    assert f"playbooks/rotate.yml -e rotate={kind}" in said(refused)
    assert set(refused.changed().values()) <= {0}, refused.changed_tasks()


def changes_nothing(site: Site) -> None:
    """Nothing is left to do for a run of the cluster's part of site.yml."""
    run = site.playbook("cluster", *BARE)
    assert run.status == 0, run.output[-6000:]
    assert set(run.changed().values()) == {0}, run.changed_tasks()


def token(site: Site, node: str, path: str) -> str:
    """The secret part of a token file."""
    return site.ssh(node, f"cat {path}").strip().rpartition(":")[2]


def answer(site: Site, user: str, password: str, path: str) -> int:
    """HTTP status of a path of the server for somebody who brings a token."""
    script = f"""curl -s -o /dev/null -w '%{{http_code}}' --cacert {DATA}/server/tls/server-ca.crt -K - https://127.0.0.1:6443{path} <<'END'
user = "{user}:{password}"
END"""
    return int(site.ssh("server-1", script))


def serials(site: Site) -> dict[str, int]:
    """Serial numbers of leaf certificates on the nodes, and of the administrator's on the controller."""
    found = {
        f"{node} {name}": x509.load_pem_x509_certificate(
            site.ssh(node, f"cat {DATA}/{name}.crt").encode()
        ).serial_number
        for node, names in LEAVES.items()
        for name in names
    }
    return {**found, "kubeconfig": kubeconfig_serial(site.state / "kubeconfig")}


def kubeconfig_serial(path: Path) -> int:
    """Serial number of the certificate in a kubeconfig."""
    (user,) = yaml.safe_load(path.read_text())["users"]
    pem = base64.b64decode(user["user"]["client-certificate-data"])
    return x509.load_pem_x509_certificate(pem).serial_number


def test_it_asks_first(cluster: Site) -> None:
    """Nothing changes without one of the choices and the site's name."""
    for words, expected in (
        (("-e", "rotate=everything", "-e", "rotate_confirm=lab"), "server-token, agent-token, encryption-keys, certificates, kubeconfig"),
        (("-e", "rotate=certificates"), "-e rotate=certificates -e rotate_confirm=lab"),
    ):  # fmt: skip
        run = cluster.playbook("rotate", *BARE, *words)
        assert run.status != 0 and expected in said(run)
        assert set(run.changed().values()) <= {0}


def test_tokens(cluster: Site, client: Client) -> None:
    """Interrupted where the servers' token is made; afterwards only the new ones let anybody in, and none was printed."""
    site = cluster
    old = {name: token(site, "server-1", f"{CONFIG}/{name}") for name in ("token", "agent-token")}
    interrupt(site, "agent-token", "Make one for servers", SEED)
    resumed = rotate(site, "agent-token")
    assert "An interrupted rotation goes on: agent-token." in said(resumed)
    new = {name: token(site, "server-1", f"{CONFIG}/{name}") for name in ("token", "agent-token")}
    assert not set(old.values()) & set(new.values())
    # What k3s itself was started with.
    assert {name: token(site, "server-1", f"{DATA}/server/{name}") for name in new} == new
    assert token(site, "agent-1", f"{CONFIG}/token") == new["agent-token"]
    for user, name, path in (
        ("server", "token", "/v1-k3s/server-bootstrap"),
        ("node", "agent-token", "/v1-k3s/apiservers"),
    ):
        assert (answer(site, user, old[name], path), answer(site, user, new[name], path)) == (401, 200), name

    second = rotate(site, "server-token")
    newest = token(site, "server-1", f"{CONFIG}/token")
    assert newest not in new.values()
    assert token(site, "server-1", f"{CONFIG}/agent-token") == new["agent-token"]
    # Snapshots from before are read with it.
    assert token(site, "server-1", f"{CONFIG}/former-token") == new["token"]
    printed = "".join(run.output for run in (*site.runs, resumed, second))
    for secret in (*old.values(), *new.values(), newest):
        assert secret not in printed
        assert site.ssh("server-1", f"journalctl --no-pager -o cat | grep -cF {secret} || true").strip() == "0"
    changes_nothing(site)
    client.lost_at_most(MAY_BE_LOST)


def test_keys_of_secrets(cluster: Site, client: Client) -> None:
    """Every Secret is encrypted with a key that was not there before, which is the only one that is left."""
    site = cluster
    site.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "rotated", "namespace": "default"}, "stringData": {"a": "b"}}
    )  # fmt: skip

    def keys() -> list[str]:
        config = json.loads(site.ssh("server-1", f"cat {DATA}/server/cred/encryption-config.json"))
        return [
            key["name"]
            for each in config["resources"][0]["providers"]
            for settings in each.values()
            for key in settings.get("keys", [])
        ]

    (old,) = keys()
    rotate(site, "encryption-keys")
    (new,) = keys()
    assert new != old
    # Only the new key can read them; and in the datastore's file, values name the key that they were written with.
    assert site.kubectl("get", "secret", "rotated", "-n", "default")["data"] == {"a": base64.b64encode(b"b").decode()}
    every = site.kubectl("get", "secrets", "-A")["items"]
    written = site.ssh("server-1", f"grep -aoh 'k8s:enc:aescbc:v1:{new}:' -r {DATA}/server/db/etcd/member | wc -l")
    assert int(written) >= len(every)
    changes_nothing(site)
    client.lost_at_most(MAY_BE_LOST)


def test_certificates(cluster: Site, client: Client) -> None:
    """Interrupted in the first node's turn; afterwards every node has others of the same authority, and so has the administrator."""
    site, before = cluster, serials(cluster)
    authority = site.ssh("server-1", f"cat {DATA}/server/tls/server-ca.crt")
    former = site.logs / "former-kubeconfig"
    former.write_text((site.state / "kubeconfig").read_text())
    former.chmod(0o600)
    interrupt(site, "certificates", "k3s : Have its certificates made anew", SEED + 1)
    rotate(site, "certificates")
    after = serials(site)
    assert [name for name in before if before[name] == after[name]] == []
    assert site.ssh("server-1", f"cat {DATA}/server/tls/server-ca.crt") == authority
    # Nobody can take a certificate back; the guide says so.
    words = [site.kubectl_words()[0], "--kubeconfig", str(former), "get", "--raw", "/readyz"]
    assert subprocess.run(words, check=True, capture_output=True).stdout == b"ok"
    changes_nothing(site)
    client.lost_at_most(MAY_BE_LOST)


def test_the_kubeconfig_alone(cluster: Site, client: Client) -> None:
    """A new certificate of the administrator; no node gets another one."""
    before = serials(cluster)
    rotate(cluster, "kubeconfig")
    after = serials(cluster)
    assert {name for name in before if before[name] != after[name]} == {
        "kubeconfig",
        "server-1 server/tls/client-admin",
    }
    assert cluster.kubectl("get", "nodes")["items"]
    changes_nothing(cluster)
    client.lost_at_most(MAY_BE_LOST)


def test_mirrors_of_registries(cluster: Site) -> None:
    """Declared, they are on every node for root alone, and k3s was started with them; taken out, the file goes; somebody else's stays."""
    site = cluster
    path = f"{CONFIG}/registries.yaml"
    password = "not-to-be-printed"
    mirrors = {
        "mirrors": {"registry.example": {"endpoint": ["https://mirror.example:5000"]}},
        "configs": {"mirror.example:5000": {"auth": {"username": "puller", "password": password}}},
    }
    words = ("-e", json.dumps({"k3s_registries": mirrors}))
    run = site.playbook("cluster", *BARE, *words)
    assert run.status == 0, run.output[-6000:]
    assert password not in run.output
    for node in site.nodes:
        assert yaml.safe_load(site.ssh(node, f"cat {path}")) == mirrors
        assert site.ssh(node, f"stat -c '%a %U' {path}").split() == ["600", "root"]
        assert "mirror.example:5000" in site.ssh(node, f"grep -rh mirror.example {DATA}/agent/etc/containerd")
    again = site.playbook("cluster", *BARE, *words)
    assert set(again.changed().values()) == {0}, again.changed_tasks()
    run = site.playbook("cluster", *BARE)
    assert run.status == 0, run.output[-6000:]
    assert [site.ssh(node, f"ls {path} 2>/dev/null || true") for node in site.nodes] == ["", ""]
    site.ssh("agent-1", f"echo 'mirrors: {{}}' > {path}")
    try:
        # It restarts k3s on what lies there, and leaves it.
        assert site.playbook("cluster", *BARE).status == 0
        assert site.ssh("agent-1", f"cat {path}") == "mirrors: {}\n"
    finally:
        site.ssh("agent-1", f"rm {path}")
        assert site.playbook("cluster", *BARE).status == 0
    changes_nothing(site)
