"""The cluster is backed up and comes back: in place, from the data of one server, and on machines that are new."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .conftest import HA, QUICK, Run, Servers, Site
from .listing import OF_MACHINES, Listing, listing, new_key, without
from .polling import deployment, said, start

pytestmark = pytest.mark.timeout(3600)

DATA = "/var/lib/rancher/k3s"


@dataclass
class Kept:
    """The site, the file with its key, its newest archive, and what the cluster held when that was taken."""

    servers: Servers
    key: Path
    archive: Path
    listing: Listing
    kubeconfig: Path

    def words(self, **options: str) -> list[str]:
        """The options of a restoration from the archive; given ones replace them."""
        given = {
            "restore_component": "cluster",
            "restore_confirm": HA,
            "restore_from": str(self.archive),
            "backup_identity_file": str(self.key),
            **options,
        }
        return [word for name, value in given.items() for word in ("-e", f"{name}={value}")]

    def restore(self, **options: str) -> Run:
        """Restore, which must not fail and shows no secret."""
        run = self.servers.succeeds("restore", *self.words(**options))
        self.shows_no_secret(run)
        return run

    def shows_no_secret(self, run: Run) -> None:
        """Neither a token nor the key is in the output of a run, and nothing that was not encrypted is left on a server."""
        site = self.servers.site
        secrets = [self.key.read_text().strip()]
        for name in set(self.servers.servers) & set(self.servers.voters()):
            secrets += site.ssh(name, "cat /etc/rancher/k3s/token /etc/rancher/k3s/agent-token").split()
            assert "transfer" not in site.ssh(name, f"ls {DATA}/server")
        assert not [secret for secret in secrets if secret in run.output]

    def old_credentials_hold(self) -> None:
        """The kubeconfig of that time, which trusts the authority of that time, still opens the API."""
        kubectl = str(self.servers.site.state / "bundle/bin/kubectl")
        words = [kubectl, "--kubeconfig", str(self.kubeconfig), "get", "namespaces"]
        subprocess.run(words, check=True, capture_output=True)


def config_map(name: str) -> dict[str, Any]:
    """An object that says that it is there."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"},
        "data": {"a": "b"},
    }


def workload(site: Site) -> list[dict[str, Any]]:
    """A Secret, a ConfigMap, and a pod of the agent with a volume there."""
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "kept", "namespace": "default"}}
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "kept", "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}},
    }
    keeper = deployment(site, "keeper", "agent-1")[0]
    keeper["spec"] |= {"replicas": 1, "strategy": {"type": "Recreate"}}
    pod = keeper["spec"]["template"]["spec"]
    pod["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "kept"}}]
    pod["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    return [{**secret, "stringData": {"word": "unforgotten"}}, config_map("kept"), claim, keeper]


def inside(site: Site, script: str) -> str:
    """Run a script in the pod with the volume, once it is ready."""
    kubectl = site.kubectl_words()
    waited = subprocess.run([*kubectl, "rollout", "status", "deployment/keeper", "--timeout=300s"], check=False)
    if waited.returncode:
        subprocess.run([*kubectl, "describe", "pods,persistentvolumes,persistentvolumeclaims"], check=False)
    assert waited.returncode == 0
    words = [*kubectl, "exec", "deployment/keeper", "--", "sh", "-c", script]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def back_up(servers: Servers, recipient: str, *more: str) -> tuple[Run, list[Path]]:
    """Take a backup; return the run and the archives that there are."""
    run = servers.succeeds("backup", "-e", json.dumps({"backup_recipients": [recipient]}), *more)
    return run, sorted((servers.site.state / "backup").iterdir())


@pytest.fixture(scope="module")
def kept(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """The installed site with a workload, after two backups of which the second one is kept."""
    site, folder = servers.site, tmp_path_factory.mktemp("kept")
    servers.succeeds("site", *QUICK)
    start(site, *workload(site))
    inside(site, "echo written > /data/file; sync")
    key, recipient = new_key(folder / "key")
    shutil.copy2(site.state / "kubeconfig", folder / "kubeconfig")

    refused = site.playbook("backup")
    assert refused.status != 0 and "not kept without encryption" in said(refused)
    assert set(refused.changed().values()) <= {0}
    _, first = back_up(servers, recipient)
    listed = listing(site)
    run, archives = back_up(servers, recipient, "-e", "backup_keep=1")
    (archive,) = archives
    assert archive not in first
    kept = Kept(servers, key, archive, listed, folder / "kubeconfig")
    kept.shows_no_secret(run)
    return kept


def test_an_archive_is_private(kept: Kept) -> None:
    """Its owner may read it, and only its manifest is in the clear."""
    assert {stat.S_IMODE(path.stat().st_mode) for path in (kept.archive, kept.archive.parent)} == {0o700}
    files = {path.name: path for path in kept.archive.iterdir()}
    assert set(files) == {"manifest.json", "snapshot.zip.age", "token.age", "agent-token.age"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o600}
    assert all(
        path.read_bytes().startswith(b"age-encryption.org/v1\n")
        for name, path in files.items()
        if name != "manifest.json"
    )
    manifest = json.loads(files["manifest.json"].read_text())
    assert manifest["nodes"] == ["agent-1", "server-1", "server-2", "server-3"]


def test_bad_input_is_refused_before_any_change(kept: Kept, tmp_path: Path) -> None:
    """Another key, a damaged archive, one that is not complete, one of another version, a quorum that is there."""
    wrong, _ = new_key(tmp_path / "wrong")
    damaged, short, newer = (shutil.copytree(kept.archive, tmp_path / name) for name in ("damaged", "short", "newer"))
    content = (damaged / "snapshot.zip.age").read_bytes()
    (damaged / "snapshot.zip.age").write_bytes(content[:-10] + b"0" * 9 + content[-1:])
    (short / "token.age").unlink()
    manifest = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_text(json.dumps({**manifest, "k3s": "v1.99.0+k3s1"}))
    for options, reason in (
        ({"restore_confirm": "lab"}, f"-e restore_confirm={HA}"),
        ({"backup_identity_file": str(wrong)}, "it was encrypted for others"),
        ({"restore_from": str(damaged)}, "snapshot.zip.age is damaged"),
        ({"restore_from": str(short)}, "token.age is missing"),
        ({"restore_from": str(newer)}, "The archive is one of k3s v1.99.0+k3s1"),
        ({"restore_from": "", "restore_server": "server-1"}, "so the quorum is not lost"),
    ):
        run = kept.servers.site.playbook("restore", *kept.words(**options))
        assert run.status != 0
        assert reason in said(run), run.output[-4000:]
        assert set(run.changed().values()) <= {0}, run.changed_tasks()
    assert listing(kept.servers.site) == kept.listing


def test_restore_in_place(kept: Kept) -> None:
    """Interrupted when all is put aside it begins no other cluster and goes on when started again; then the cluster is what it was."""
    servers, site = kept.servers, kept.servers.site
    start(site, config_map("later"))
    subprocess.run([*site.kubectl_words(), "delete", "secret/kept", "configmap/kept"], check=True, capture_output=True)
    inside(site, "echo rewritten > /data/file; sync")

    words = site.playbook_words("restore", *kept.words())
    _, reached = site.interrupt("PLAY [Prepare all nodes]", 0.5, *words)
    assert reached
    refused = site.playbook("cluster")
    assert refused.status != 0
    assert "A restore has put the data of server-1, server-2, server-3 aside" in said(refused), refused.output[-4000:]

    kept.restore()
    assert listing(site) == kept.listing
    assert site.kubectl("get", "secret", "kept")["data"]["word"] == "dW5mb3Jnb3R0ZW4="
    # Volumes are not in a backup: what was written since is there.
    assert inside(site, "cat /data/file") == "rewritten\n"
    kept.old_credentials_hold()
    assert servers.voters() == sorted(servers.servers)
    for name in servers.servers:
        assert "/server/db/etcd/member" in site.ssh(name, f"find {DATA}/before-restore -name member")
    servers.changes_nothing()


def test_the_quorum_is_lost(kept: Kept) -> None:
    """Two of three servers are gone: the third begins anew with all that it has, and new machines take their places."""
    servers, site = kept.servers, kept.servers.site
    start(site, config_map("newest"))
    before = listing(site)
    for name in ("server-2", "server-3"):
        site.lab("fault", "--site", HA, "--inventory", str(servers.folder / "hosts.yml"), name, "kill")
    gone = {"slipway_absent": "server-2,server-3"}
    kept.restore(restore_from="", restore_server="server-1", **gone)
    assert servers.voters() == ["server-1"]
    assert [key[2] for key in listing(site) if key[0] == "Node"] == ["agent-1", "server-1"]
    assert without(listing(site), OF_MACHINES) == without(before, OF_MACHINES)
    assert inside(site, "cat /data/file") == "rewritten\n"
    servers.changes_nothing("-e", "slipway_absent=server-2,server-3")

    servers.wipe("server-2", "server-3")
    servers.machines()
    servers.succeeds("site", *QUICK)
    assert servers.voters() == sorted(servers.servers)
    servers.changes_nothing()


def test_restore_onto_new_machines(kept: Kept) -> None:
    """Every machine is lost with its disks: the archive brings back the cluster with its credentials; volumes are empty."""
    servers, site = kept.servers, kept.servers.site
    servers.wipe(*site.nodes)
    servers.machines()
    kept.restore()
    assert without(listing(site), OF_MACHINES) == without(kept.listing, OF_MACHINES)
    assert site.kubectl("get", "secret", "kept")["data"]["word"] == "dW5mb3Jnb3R0ZW4="
    assert inside(site, "ls /data") == ""
    kept.old_credentials_hold()
    assert servers.voters() == sorted(servers.servers)
    assert sorted(item["metadata"]["name"] for item in site.kubectl("get", "nodes")["items"]) == sorted(site.nodes)
    servers.changes_nothing()
