"""k3s goes to another version, node by node, under a client that asks on and a controller that is interrupted."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import yaml

from .conftest import BARE, Run, Site
from .polling import Client, asking, deployment, remove, said, start

pytestmark = pytest.mark.timeout(2400)

# A client that asks both nodes five times a second may lose so many requests over the whole upgrade, interruptions included.
MAY_BE_LOST = 5
# SLIPWAY_SEED tries other points.
SEED = int(os.environ.get("SLIPWAY_SEED", "8"))
POINTS = (
    "Drain it",
    "Switch to the next binary",
    "Run k3s on these files",
    "Await the node in its new version",
    "Give the node back",
)


@pytest.fixture
def client(site: Site) -> Iterator[Client]:
    """A client of a Service of two pods, while a test lasts."""
    with asking(site) as client:
        yield client


@dataclass
class Upgrade:
    """The site on one version of k3s, and the bundle with the next."""

    site: Site
    old: str
    new: str
    words: tuple[str, ...]

    def run(self, *more: str) -> Run:
        """Run upgrade.yml to the next version."""
        return self.site.playbook("upgrade", *self.words, *more)

    def nodes(self) -> dict[str, tuple[str, bool, bool]]:
        """Version of each node, whether it is cordoned, and whether an upgrade says it was that."""
        return {
            item["metadata"]["name"]: (
                item["status"]["nodeInfo"]["kubeletVersion"],
                bool(item["spec"].get("unschedulable")),
                "slipway/cordoned" in item["metadata"]["annotations"],
            )
            for item in self.site.kubectl("get", "nodes")["items"]
        }


@pytest.fixture(scope="module")
def upgrade(cluster: Site) -> Upgrade:
    """A cluster without components on the lab's version, and the bundle to upgrade to."""
    old = yaml.safe_load((cluster.state / "bundle/bundle.yml").read_text())["versions"]["k3s"]
    head, _, build = old.rpartition("k3s")
    new = f"{head}k3s{int(build) + 1}"
    path = cluster.lab("k3s-version", str(cluster.state / "bundle"), new).split()[-1]
    return Upgrade(cluster, old, new, (*BARE, "-e", f"slipway_bundle_dir={path}"))


def test_upgrade_is_left_to_its_playbook(upgrade: Upgrade) -> None:
    """Another version of k3s in the bundle stops a run of site.yml's part, before any change, with the playbook's name."""
    run = upgrade.site.playbook("cluster", *upgrade.words)
    assert run.status != 0
    assert f"the bundle brings {upgrade.new}" in said(run)
    assert "playbooks/upgrade.yml" in said(run)
    assert set(run.changed().values()) <= {0}
    assert {version for version, _, _ in upgrade.nodes().values()} == {upgrade.old}


def test_upgrade_names_what_blocks_it_before_anything_changes(upgrade: Upgrade) -> None:
    """A budget without room and a pod that nobody would make anew are in the table, and nothing is changed."""
    objects = deployment(upgrade.site, "blocking")
    objects[1]["spec"] = {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "blocking"}}}
    lone = {**objects[0]["spec"]["template"]["spec"], "nodeName": "agent-1"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lone", "namespace": "default"}, "spec": lone}
    start(upgrade.site, *objects, pod)
    run = upgrade.run()
    remove(upgrade.site, "deployment/blocking", "poddisruptionbudget/blocking", "pod/lone")
    assert run.status != 0
    assert "PodDisruptionBudget default/blocking allows no disruption" in said(run)
    assert "default/lone" in said(run)
    assert set(run.changed().values()) <= {0}, run.changed_tasks()
    assert upgrade.nodes() == dict.fromkeys(upgrade.site.nodes, (upgrade.old, False, False))


def test_upgrade_survives_blocks_and_interruptions(upgrade: Upgrade, client: Client) -> None:
    """Interrupted thrice at random points, blocked once by a budget: each run goes on where the last ended, and the client hardly notices."""
    site, points = upgrade.site, random.Random(SEED)

    def interrupt() -> None:
        when, delay = points.choice(POINTS), points.uniform(0, 2)
        print(f"seed {SEED}: interrupted {delay:.1f} s into {when!r}")
        site.interrupt(f"TASK [k3s : {when}]", delay, *site.playbook_words("upgrade", *upgrade.words))
        # A restart that had begun goes on without the controller.
        words = [*site.kubectl_words(), "get", "--raw", "/readyz", "--request-timeout=5s"]
        end = time.monotonic() + 120
        while subprocess.run(words, check=False, capture_output=True).stdout != b"ok":
            assert time.monotonic() < end
            time.sleep(0.5)

    interrupt()
    # One pod may go; the one in its place must be on the node that takes none, so the other may not follow.
    start(site, *deployment(site, "pinned", "agent-1"))
    blocked = upgrade.run("-e", "k3s_upgrade_drain_timeout=75")
    assert blocked.status != 0
    assert "agent-1 was not upgraded" in said(blocked), blocked.output[-4000:]
    assert "PodDisruptionBudget default/pinned allows no disruption" in said(blocked)
    assert upgrade.nodes() == {"server-1": (upgrade.new, False, False), "agent-1": (upgrade.old, False, False)}
    remove(site, "deployment/pinned", "poddisruptionbudget/pinned")

    interrupt()
    interrupt()
    run = upgrade.run()
    assert run.status == 0, run.output[-6000:]
    assert upgrade.nodes() == dict.fromkeys(site.nodes, (upgrade.new, False, False))
    for node in site.nodes:
        assert f"k3s version {upgrade.new} " in site.ssh(node, "k3s --version; ls -A /usr/local/bin")
        assert ".k3s." not in site.ssh(node, "ls -A /usr/local/bin")
    assert "slipway-before-" in site.ssh("server-1", "ls /var/lib/rancher/k3s/server/db/snapshots")

    again = upgrade.run()
    assert again.status == 0, again.output[-4000:]
    assert set(again.changed().values()) == {0}, again.changed_tasks()
    cluster = site.playbook("cluster", *upgrade.words)
    assert cluster.status == 0, cluster.output[-4000:]
    assert set(cluster.changed().values()) == {0}, cluster.changed_tasks()
    client.lost_at_most(MAY_BE_LOST)


def test_upgrade_does_not_go_back(upgrade: Upgrade) -> None:
    """The older bundle is refused, with the way that there is."""
    run = upgrade.site.playbook("upgrade", *BARE)
    assert run.status != 0
    assert "downgrade" in said(run) and "restored snapshot" in said(run)
    assert set(run.changed().values()) <= {0}
