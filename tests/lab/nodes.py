"""The nodes of a lab site: podman containers that boot Debian with systemd and are reached over SSH."""

from __future__ import annotations

import ipaddress
import json
import os
import resource
import shutil
import socket
import time
import uuid
from pathlib import Path
from typing import Any

from tests.lab import hardware, images, residue
from tests.lab.cache import Cache, say
from tests.lab.process import LabError, run
from tests.lab.site import Site

USER = "ops"
BOOT_TIMEOUT_S = 60.0
# Sparse files: they take what is written to them.
DISK_BYTES = {"rancher": 40 << 30, "kubelet": 10 << 30}


def podman(*words: str | Path, stdin: str | None = None, check: bool = True) -> str:
    """What `podman WORDS...` prints.

    Raises:
        LabError: podman failed and `check` is set.
    """
    return run(["podman", *words], stdin=stdin, check=check).stdout


def up(site: Site, cache: Cache) -> None:
    """Start what is missing of a site: network, SSH key, nodes; ends when each node answers over SSH.

    Raises:
        LabError: podman refused, another site's network is in the way, or a node did not boot.
    """
    residue.remember()
    ensure_key(site)
    ensure_network(site)
    states = container_states(site)
    for node in [node for node, state in states.items() if state in ("configured", "created", "initialized")]:
        # An earlier run was interrupted before the first boot.
        remove_containers([podman("inspect", "--format={{.Id}}", site.container(node)).strip()])
        del states[node]
    missing = [node for node in site.nodes if node not in states]
    if missing:
        image = images.node()
        archive = image.archive(cache)
        with cache.lock("podman"):
            images.load(archive, image.reference)
        for node in missing:
            say(f"creating node {node} at {site.nodes[node]}")
            ensure_volumes(site, node, cache)
            podman(*run_words(site, node, image.reference))
    for node, state in states.items():
        if state == "paused":
            podman("unpause", site.container(node))
        elif state != "running":
            podman("start", site.container(node))
    for node in site.nodes:
        await_boot(site, node)
    write_known_hosts(site)
    for node in site.nodes:
        check_login(site, node)
        write_hardware(site, node)


def down(name: str, state: Path, cache: Cache) -> None:
    """Remove the site `name` from this machine; what is not there is no error.

    Works without the inventory, which may have changed since: everything that carries the site's label goes.
    """
    label = f"--filter=label=slipway.site={name}"
    containers = podman("ps", "--all", "--quiet", "--no-trunc", label).split()
    used_images = set(podman("ps", "--all", label, "--format={{.Image}}").split())
    remove_containers(containers)
    for volume in podman("volume", "ls", "--quiet", label).split():
        disk = podman("volume", "inspect", "--format={{.Options.device}}", volume).strip()
        podman("volume", "rm", volume)
        Path(disk).unlink(missing_ok=True)
    networks = podman("network", "ls", "--quiet", label).split()
    if networks:
        podman("network", "rm", *networks)
    with cache.lock("podman"):
        images.forget(sorted(used_images))
    residue.restore()
    shutil.rmtree(state, ignore_errors=True)


def remove_containers(containers: list[str]) -> None:
    """Remove containers, given by their full ids, with all that they hold."""
    if containers:
        # Podman fails when a container stops at the very moment in which it loses patience; then the second try finds it stopped.
        podman("rm", "--force", "--time=2", *containers, check=False)
        podman("rm", "--force", "--ignore", "--time=2", *containers)
    for container in containers:
        # Podman was killed between creating and starting: runc knows a process of which podman does not.
        run(["runc", "delete", "--force", container], check=False)
        residue.remove_cgroups(container)


def ensure_key(site: Site) -> None:
    """Generate the site's SSH key once."""
    if site.key.exists():
        return
    site.key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"slipway-{site.name}", "-f", site.key])


def ensure_network(site: Site) -> None:
    """Create the site's network, or check that the one of that name has the right addresses.

    Raises:
        LabError: it exists with another subnet.
    """
    found = podman("network", "inspect", site.network, check=False)
    networks = json.loads(found) if found.strip() else []
    if not networks:
        # Real machines do not find each other by name either, unless their operator has seen to it.
        podman(
            "network", "create", "--disable-dns", f"--subnet={site.subnet}", f"--gateway={site.gateway}",
            f"--label=slipway.site={site.name}", site.network,
        )  # fmt: skip
        return
    subnets = [subnet["subnet"] for subnet in networks[0].get("subnets", [])]
    if subnets != [str(site.subnet)]:
        raise LabError(
            f"network {site.network} exists with {subnets}, not {site.subnet}: run `down --site {site.name}` first"
        )


def ensure_volumes(site: Site, node: str, cache: Cache) -> None:
    """Create what is missing of a node's disks: files with a file system of their own, so that a node can run out of space.

    A volume that is there keeps its content, as a data disk does when a machine is installed anew.
    """
    for volume in site.volumes(node):
        if run(["podman", "volume", "exists", volume], check=False).returncode == 0:
            continue
        disk = cache.root / "disk" / volume
        disk.parent.mkdir(parents=True, exist_ok=True)
        with disk.open("wb") as stream:
            stream.truncate(DISK_BYTES[volume.rsplit("-", 1)[1]])
        run(["mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard", disk])
        # barrier=0: a node is killed, never this machine, so no write of etcd has to wait for the real disk.
        podman(
            "volume", "create", f"--label=slipway.site={site.name}",
            "--opt=type=ext4", f"--opt=device={disk}", "--opt=o=loop,discard,barrier=0", volume,
        )  # fmt: skip


def container_states(site: Site) -> dict[str, str]:
    """State of each node that has a container, as podman names it (running, exited, paused ...)."""
    listed: list[dict[str, Any]] = json.loads(
        podman("ps", "--all", "--format=json", f"--filter=label=slipway.site={site.name}")
    )
    states = {container["Labels"]["slipway.node"]: container["State"] for container in listed}
    return {node: states[node] for node in site.nodes if node in states}


def run_words(site: Site, node: str, image: str) -> list[str]:
    """The podman command that creates a node.

    --systemd=false on purpose: on a cgroup v1 machine --systemd=always mounts the root of the name=systemd hierarchy into
    every container, and the systemds of two nodes then delete each other's cgroups. The tmpfs mounts make up for it.
    The uuid becomes the node's machine id.
    """
    limits = [f"--ulimit={name}={value}:{value}" for name, value in _limits().items()]
    volumes = [f"--volume={volume}:{place}" for volume, place in site.volumes(node).items()]
    return [
        "run", "--detach", f"--name={site.container(node)}", f"--hostname={node}",
        f"--label=slipway.site={site.name}", f"--label=slipway.node={node}",
        f"--network={site.network}", f"--ip={site.nodes[node]}", f"--mac-address={mac_address(site.nodes[node])}",
        "--runtime=runc", "--privileged", "--cgroupns=private", "--systemd=false", "--pids-limit=-1",
        "--tmpfs=/run:rw,mode=755,exec", "--tmpfs=/run/lock", "--tmpfs=/tmp:exec",
        "--env=container=podman", f"--env=container_uuid={uuid.uuid4()}",
        *limits,
        *volumes, image,
    ]  # fmt: skip


def mac_address(address: ipaddress.IPv4Address) -> str:
    """A node's MAC address, always the same, so that nobody who knew the node waits for a stale ARP entry."""
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x4C, *address.packed))


def _limits() -> dict[str, int]:
    """Limits of open files and processes for a node: what this machine grants us, within what podman grants itself."""
    wanted = {"nofile": (resource.RLIMIT_NOFILE, 1048576), "nproc": (resource.RLIMIT_NPROC, 30000)}
    limits = {}
    for name, (kind, value) in wanted.items():
        hard = resource.getrlimit(kind)[1]
        limits[name] = value if hard == resource.RLIM_INFINITY else min(hard, value)
    return limits


def await_boot(site: Site, node: str) -> None:
    """Wait until a node's sshd greets, and let the site's key in.

    Raises:
        LabError: it does not within BOOT_TIMEOUT_S; carries the end of the node's journal.
    """
    address = str(site.nodes[node])
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while not _greets(address):
        if time.monotonic() > deadline:
            journal = podman("exec", site.container(node), "journalctl", "--no-pager", "--lines=20", check=False)
            raise LabError(
                f"node {node} ({address}): no SSH after {BOOT_TIMEOUT_S:.0f} s; its journal ends with\n{journal}"
            )
        time.sleep(0.1)
    public = site.key.with_suffix(".pub").read_text()
    script = (
        f"install -d -o {USER} -g {USER} -m 700 /home/{USER}/.ssh && "
        f"install -o {USER} -g {USER} -m 600 /dev/stdin /home/{USER}/.ssh/authorized_keys"
    )
    podman("exec", "--interactive", site.container(node), "sh", "-c", script, stdin=public)


def _greets(address: str) -> bool:
    """Whether an SSH server answers at the address."""
    try:
        with socket.create_connection((address, 22), timeout=1.0) as connection:
            connection.settimeout(1.0)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def write_known_hosts(site: Site) -> None:
    """Write the nodes' host keys, read from inside the nodes, so that nothing is trusted on first use."""
    lines = []
    for node, address in site.nodes.items():
        keys = podman("exec", site.container(node), "sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub")
        for line in keys.splitlines():
            kind, key = line.split()[:2]
            lines.append(f"{address},{node} {kind} {key}\n")
    text = "".join(lines)
    if site.known_hosts.exists() and site.known_hosts.read_text() == text:
        return
    draft = site.known_hosts.with_suffix(".new")
    draft.write_text(text)
    draft.replace(site.known_hosts)


def ssh_words(site: Site, node: str) -> list[str]:
    """The ssh command, without the remote one, that reaches a node as the roles do."""
    return [
        "ssh", "-F", "none", "-i", str(site.key), "-o", f"UserKnownHostsFile={site.known_hosts}",
        "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", f"{USER}@{site.nodes[node]}",
    ]  # fmt: skip


def check_login(site: Site, node: str) -> None:
    """Log in and become root, once.

    Raises:
        LabError: one of the two is refused.
    """
    run([*ssh_words(site, node), "sudo", "--non-interactive", "true"])


def write_hardware(site: Site, node: str) -> None:
    """Give a node the simulated GPUs that the inventory says, under hardware.ROOT."""
    program = Path(hardware.__file__).read_text()
    count = str(site.gpus[node])
    podman("exec", "--interactive", site.container(node), "python3", "-", node, count, stdin=program)


def use_own_settings() -> None:
    """Let podman and buildah, when called by this process, read the lab's settings instead of the machine's."""
    os.environ["CONTAINERS_CONF"] = str(Path(__file__).with_name("containers.conf"))
