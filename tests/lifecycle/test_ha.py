"""Several servers: they join, one is lost for good and replaced, a node is removed, while a client asks on."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import yaml

from .conftest import HA, QUICK, Run, Servers, Site
from .polling import Client, asking, said

pytestmark = pytest.mark.timeout(2400)

# Of inventories/lab-ha, and how long the API may be away from it when its holder fails.
ADDRESS = "10.77.2.10"
MOVES_WITHIN_S = 20
# A client that asks the nodes which stay five times a second may lose so many requests while the first server dies and is replaced.
MAY_BE_LOST = 5


def starts(site: Site, names: list[str]) -> dict[str, str]:
    """Return when k3s was started on each server."""
    return {name: site.ssh(name, "systemctl show -p ExecMainStartTimestampMonotonic k3s") for name in names}


def steps(run: Run) -> list[tuple[str, str]]:
    """Return what was done where, in order."""
    found, task = [], ""
    for line in run.output.splitlines():
        if match := re.match(r"TASK \[(?:\S+ : )?(.*?)\] \*", line):
            task = match[1]
        elif match := re.match(r"(?:ok|changed): \[([^]]+)\]", line):
            found.append((task, match[1].split(" ")[0]))
    return found


def test_servers_join_one_by_one(servers: Servers) -> None:
    """Each votes before the next one joins, and the suite's part for a bare site passes."""
    done = steps(servers.succeeds("site"))
    assert servers.voters() == ["server-1", "server-2", "server-3"]
    for earlier, later in (("server-1", "server-2"), ("server-2", "server-3")):
        voted = done.index(("Await the votes of all servers that run", earlier))
        assert voted < done.index(("Run k3s on these files", later)), done


def test_another_order_of_the_inventory_changes_nothing(servers: Servers) -> None:
    """A second run, with everybody named in the opposite order: no change on any host, nothing restarted."""
    before = starts(servers.site, list(servers.servers))
    servers.reorder()
    servers.changes_nothing()
    assert starts(servers.site, list(servers.servers)) == before


def test_contract_of_several_servers(servers: Servers) -> None:
    """What the playbooks rely on holds on this site; afterwards all servers vote again."""
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/contract/test_k3s_ha.py"]
    run = servers.site.run(*words, SLIPWAY_INVENTORY=str(servers.folder / "hosts.yml"))
    assert run.status == 0, run.output[-8000:]
    assert " skipped" not in run.output, run.output[-2000:]


def test_a_change_goes_over_the_servers_one_at_a_time(servers: Servers) -> None:
    """Never two at once, as each is ready again before the next one is restarted."""
    before = starts(servers.site, list(servers.servers))
    run = servers.succeeds("cluster", "-e", json.dumps({"k3s_tls_sans": ["api.lab-ha.internal"]}))
    changed = {host: count for host, count in run.changed().items() if count}
    assert set(changed) == set(servers.servers), run.changed_tasks()
    after = starts(servers.site, list(servers.servers))
    assert all(after[name] != before[name] for name in after)
    script = "systemctl show --timestamp=unix -p ExecMainStartTimestamp -p ActiveEnterTimestamp --value k3s"
    spans = sorted(
        sorted(float(line.lstrip("@")) for line in servers.site.ssh(name, script).split()) for name in servers.servers
    )
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans)), spans
    assert servers.voters() == sorted(servers.servers)
    # Back to what the other tests run with.
    servers.succeeds("cluster")


def holders(servers: Servers) -> list[str]:
    """Servers that hold the API's address."""
    return [name for name in servers.servers if f" {ADDRESS}/32 " in servers.site.ssh(name, "ip -oneline address")]


def test_the_address_moves_to_a_server_that_answers(servers: Servers) -> None:
    """One server has the API's address, which the kubeconfig names; when k3s stops there, another one has it, and the API answers."""
    site = servers.site
    config = yaml.safe_load((site.state / "kubeconfig").read_text())
    assert config["clusters"][0]["cluster"]["server"] == f"https://{ADDRESS}:6443"
    (holder,) = holders(servers)
    site.ssh(holder, "systemctl stop k3s")
    try:
        end = time.monotonic() + MOVES_WITHIN_S
        words = [*site.kubectl_words(), "get", "--raw", "/readyz", "--request-timeout=2s"]
        while subprocess.run(words, check=False, capture_output=True).stdout != b"ok":
            assert time.monotonic() < end
            time.sleep(0.5)
        (other,) = holders(servers)
        assert other != holder
    finally:
        site.ssh(holder, "systemctl start k3s")


@pytest.fixture
def client(servers: Servers) -> Iterator[Client]:
    """A client of a Service whose two pods are not on the server that dies, through the nodes that stay."""
    with asking(servers.site, ("server-2", "server-3", "agent-1"), not_on="server-1") as client:
        yield client


def pods(site: Site) -> list[tuple[str, int]]:
    """Identity and restarts of the pods of the client's Service."""
    found = site.kubectl("get", "pods", "-n", "default", "-l", "app=polled")["items"]
    return sorted((pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"]) for pod in found)


def test_the_first_server_is_lost_for_good(servers: Servers, client: Client) -> None:
    """An unchanged run stops and names it; declared absent and with a new server there are three votes again, and workloads have not noticed."""
    site, before = servers.site, pods(servers.site)
    site.lab("fault", "--site", HA, "--inventory", str(servers.folder / "hosts.yml"), "server-1", "kill")

    refused = site.playbook("site", *QUICK)
    assert refused.status != 0
    assert "server-1 reachable" in said(refused), refused.output[-4000:]
    assert "slipway_absent: [server-1]" in said(refused)
    assert set(refused.changed().values()) <= {0}, refused.changed_tasks()

    servers.servers["server-4"] = {"ansible_host": "10.77.2.14"}
    servers.write()
    servers.machines(without="server-1")
    words = (*QUICK, "-e", "slipway_absent=server-1")
    kept = starts(site, ["server-2", "server-3"])
    servers.succeeds("site", *words)
    assert servers.voters() == ["server-2", "server-3", "server-4"]
    names = [item["metadata"]["name"] for item in site.kubectl("get", "nodes")["items"]]
    assert sorted(names) == ["agent-1", "server-2", "server-3", "server-4"]
    assert pods(site) == before
    # Neither a lost server nor a new one is a reason to restart the others.
    assert starts(site, ["server-2", "server-3"]) == kept
    servers.changes_nothing("-e", "slipway_absent=server-1")
    client.lost_at_most(MAY_BE_LOST)


def test_a_node_is_removed(servers: Servers) -> None:
    """It asks first; then the node is out of the cluster and its member out of the datastore, and nothing of k3s is on its machine."""
    site = servers.site
    del servers.servers["server-1"]
    servers.write()
    refused = site.playbook("remove_node", "-e", "remove_node=server-4")
    assert refused.status != 0
    assert f"-e remove_node_confirm={HA}" in said(refused)
    run = servers.succeeds("remove_node", "-e", "remove_node=server-4", "-e", f"remove_node_confirm={HA}")
    assert "2 servers remain" in said(run)
    assert servers.voters() == ["server-2", "server-3"]
    left = site.ssh(
        "server-4", "ls -d /etc/rancher /usr/local/bin/k3s /etc/systemd/system/k3s.service 2>/dev/null || true"
    )
    assert left == ""
