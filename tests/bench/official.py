"""A comparison with the official k3s playbooks, github.com/k3s-io/k3s-ansible: the same nodes, the same binary and image archives.

They are run as they are, with their own ansible.cfg, from a copy that the user has. They install from a folder (`airgap_dir`), to which
belongs the install script that https://get.k3s.io serves: it lies in the copy as k3s-install.sh.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.slipway.kube import KubeClient
from ansible.module_utils.slipway.workloads import Wanted, await_ready

from tests.bench.command import PROJECT
from tests.bench.light import FEW, SETTINGS, Light, light
from tests.lab.cache import Cache
from tests.lab.nodes import USER, podman
from tests.lab.process import run

# What our runs may take of theirs.
GOALS = {"first": 0.6, "second": 0.25}
NEEDED = ("playbooks/site.yml", "roles/airgap/tasks/main.yml", "galaxy.yml", "ansible.cfg", "k3s-install.sh")
# Their role asks Debian for its packages, for which Ansible needs this. Not in the node's image: our roles do without.
PACKAGES = ("python3-apt", "python-apt-common", "distro-info-data")
PATIENCE_S = 300.0


def check(copy: Path) -> str:
    """The version of the playbooks in a copy.

    Raises:
        SystemExit: it cannot be used; the message says what is missing.
    """
    for name in NEEDED:
        if not (copy / name).is_file():
            sys.exit(
                f"K3S_ANSIBLE={copy}: there is no {name} in it; it must be a copy of github.com/k3s-io/k3s-ansible, "
                "with the script that https://get.k3s.io serves beside it as k3s-install.sh"
            )
    return str(yaml.safe_load((copy / "galaxy.yml").read_text())["version"])


def archives(manifest: dict[str, Any]) -> list[str]:
    """The image archives of a bundle that our roles place on nodes when the site has no components."""
    return [item["path"] for item in manifest["artifacts"] if item["kind"] == "images" and not item.get("component")]


def inventory(nodes: Light, version: str, airgap: Path) -> dict[str, Any]:
    """The site's nodes as these playbooks want them, with the settings that k3s needs in the lab."""
    listed = yaml.safe_load((nodes.inventory / "hosts.yml").read_text())
    settings = yaml.safe_dump(yaml.safe_load(SETTINGS.read_text())["k3s_node_config"])
    variables = {
        "ansible_user": USER,
        "ansible_ssh_private_key_file": str(nodes.site.key),
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={nodes.site.known_hosts} -o IdentitiesOnly=yes",
        "k3s_version": version,
        "token": secrets.token_hex(32),
        "api_endpoint": str(nodes.site.nodes["server-1"]),
        "airgap_dir": str(airgap),
        "server_config_yaml": settings,
        "agent_config_yaml": settings,
        # Otherwise they write to the user's own.
        "kubeconfig": str(nodes.folder / "kubeconfig"),
    }
    return {"k3s_cluster": {**listed["k3s_cluster"], "vars": variables}}


def measure(copy: Path, bundle: Path) -> dict[str, Any]:
    """Measure a first and a second run on as many fresh nodes as our own run had."""
    manifest = yaml.safe_load((bundle / "bundle.yml").read_text())
    with light(FEW, bundle) as nodes:
        airgap = nodes.folder / "airgap"
        airgap.mkdir()
        (airgap / "k3s").symlink_to(bundle / "bin/k3s")
        (airgap / "k3s-install.sh").symlink_to(copy / "k3s-install.sh")
        for name in archives(manifest):
            (airgap / Path(name).name).symlink_to(bundle / name)
        hosts = nodes.folder / "official.yml"
        hosts.write_text(yaml.safe_dump(inventory(nodes, manifest["versions"]["k3s"], airgap), sort_keys=False))
        add_packages(nodes)
        words = ("-i", hosts, "playbooks/site.yml")
        variables = {
            "ANSIBLE_CONFIG": str(copy / "ansible.cfg"),
            # They take the kubeconfig only where they find kubectl.
            "PATH": f"{bundle / 'bin'}:{os.environ['PATH']}",
        }
        # So that their first run is not the one that reads their files from the disk: ours have been read before.
        nodes.ansible(*words, "--syntax-check", cwd=copy, **variables)
        result = {}
        for turn in GOALS:
            taken = nodes.ansible(*words, cwd=copy, **variables)
            result[turn] = {"seconds": taken, "until_ready": taken + await_cluster(nodes)}
        return result


def add_packages(nodes: Light) -> None:
    """Install the Debian packages that their playbooks want of a node."""
    with Cache().workdir() as work:
        run(["apt-get", "-o", "APT::Sandbox::User=root", "download", "--quiet", *PACKAGES], cwd=work)
        for node in nodes.site.nodes:
            container = nodes.site.container(node)
            podman("cp", work, f"{container}:/root/packages")
            podman("exec", container, "sh", "-c", "dpkg --install /root/packages/*.deb")


def await_cluster(nodes: Light) -> float:
    """Seconds until all nodes and all that k3s packages is ready, for which cluster.yml waits and these playbooks do not.

    Raises:
        SystemExit: they are not within PATIENCE_S.
    """
    defaults = yaml.safe_load((PROJECT / "playbooks/group_vars/all/site.yml").read_text())
    components = defaults["slipway_base_components"].values()
    wanted = Wanted(
        nodes=tuple(nodes.site.nodes), expect=tuple(("kube-system", "Deployment", name) for name in components)
    )
    start = time.monotonic()
    waiting = await_ready(KubeClient(str(nodes.folder / "kubeconfig")), wanted, PATIENCE_S, interval=0.2)
    if waiting:
        sys.exit(
            f"the official playbooks' cluster is not ready after {PATIENCE_S:.0f} s: {'; '.join(map(str, waiting))}"
        )
    return time.monotonic() - start


def compare(version: str, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Both, and our part of their time. Ours ends with a cluster that is ready, so its seconds are compared with both of theirs."""
    result: dict[str, Any] = {"version": version, "nodes": FEW}
    for turn, goal in GOALS.items():
        mine = ours[turn]["seconds"]
        result[turn] = {
            "ours": mine,
            "official": theirs[turn],
            "ratio": mine / theirs[turn]["seconds"],
            "ratio_until_ready": mine / theirs[turn]["until_ready"],
            "goal": goal,
        }
    return result


def table(result: dict[str, Any]) -> list[str]:
    """The figures for a person."""
    title = f"{result['nodes']} nodes, cluster without components"
    lines = [f"{title:42}{'ours':>9}{'official':>9}{'ratio':>9}{'goal':>9}  seconds; k3s-ansible {result['version']}"]
    for turn in GOALS:
        row = result[turn]
        verdict = "" if row["ratio"] <= row["goal"] else "  missed"
        lines += [
            f"{turn + ' run':42}{row['ours']:9.1f}{row['official']['seconds']:9.1f}{row['ratio']:9.2f}{row['goal']:9.2f}{verdict}",
            f"{'  until the cluster is ready':42}{row['ours']:9.1f}{row['official']['until_ready']:9.1f}{row['ratio_until_ready']:9.2f}",
        ]
    return lines
