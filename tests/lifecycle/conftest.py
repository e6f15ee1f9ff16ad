"""Lab sites from their first installation to their removal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest
import yaml

PROJECT = Path(__file__).parents[2]
# What is used of the suite reaches Services by the same code as the modules do.
ansible.module_utils.__path__.append(str(PROJECT / "plugins/module_utils"))
STATE = PROJECT / ".slipway/lab"
RECAP = re.compile(r"^(\S+)\s+: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


@dataclass
class Run:
    """One finished command: its exit status and all it printed."""

    status: int
    output: str

    def changed(self) -> dict[str, int]:
        """Return the number of changes of each host, by Ansible's recap."""
        return {host: int(changed) for host, changed, *_ in RECAP.findall(self.output)}

    def changed_tasks(self) -> list[str]:
        """Return the names of the tasks that reported a change."""
        tasks, name = [], ""
        for line in self.output.splitlines():
            if match := re.match(r"TASK \[(?:\S+ : )?(.*?)\] \*", line):
                name = match[1]
            elif line.startswith("changed:") and name not in tasks:
                tasks.append(name)
        return tasks


@dataclass
class Site:
    """A lab site, driven by the commands of the README; `inventory` is a folder."""

    logs: Path
    nodes: dict[str, str]
    name: str = "lab"
    inventory: Path = Path("inventories/lab")
    runs: list[Run] = field(default_factory=list)

    @property
    def state(self) -> Path:
        """What the site leaves on the controller."""
        return PROJECT / ".slipway" / self.name

    def start(self, *command: str, **environment: str) -> tuple[subprocess.Popen[str], Path]:
        """Start `command` in a session of its own; return the process and the file its output goes to."""
        log = self.logs / f"{len(list(self.logs.iterdir())):02}.log"
        stream = log.open("w")
        process = subprocess.Popen(
            command,
            cwd=PROJECT,
            env={**os.environ, "ANSIBLE_FORCE_COLOR": "0", "PY_COLORS": "0", **environment},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return process, log

    def run(self, *command: str, timeout: float = 1800, **environment: str) -> Run:
        """Run `command` to its end, for at most `timeout` seconds."""
        process, log = self.start(*command, **environment)
        try:
            status = process.wait(timeout)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        run = Run(status, log.read_text())
        self.runs.append(run)
        return run

    def up(self, **environment: str) -> Run:
        """Run `make up`; fail with the end of its output if it fails."""
        run = self.run("make", "up", timeout=1800, **environment)
        assert run.status == 0, run.output[-6000:]
        return run

    def playbook_words(self, name: str, *arguments: str) -> list[str]:
        """Return the command line of the playbook `name`."""
        command = str(Path(sys.executable).parent / "ansible-playbook")
        return [command, "-i", str(self.inventory), f"playbooks/{name}.yml", *arguments]

    def playbook(self, name: str, *arguments: str) -> Run:
        """Run the playbook `name` as an operator would who left make aside."""
        return self.run(*self.playbook_words(name, *arguments))

    def interrupt_up(self, when: str, timeout: float = 900) -> Run:
        """Run `make up` and send SIGINT, as Ctrl-C does, once it has printed `when`."""
        # Into the work itself, not just its headline.
        run, reached = self.interrupt(when, 1.5, "make", "up", timeout=timeout)
        assert reached, f"it ended before {when!r}:\n{run.output[-4000:]}"
        return run

    def interrupt(self, when: str, delay: float, *command: str, timeout: float = 900) -> tuple[Run, bool]:
        """Run `command` and send SIGINT `delay` seconds after it has printed `when`; return its end and whether it came that far."""
        process, log = self.start(*command)
        end = time.monotonic() + timeout
        while when not in log.read_text() and process.poll() is None:
            assert time.monotonic() < end, f"{when!r} did not appear:\n{log.read_text()[-4000:]}"
            time.sleep(0.2)
        reached = process.poll() is None
        if reached:
            time.sleep(delay)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
        run = Run(process.wait(60), log.read_text())
        self.runs.append(run)
        return run, reached

    def lab(self, *arguments: str) -> str:
        """Run a verb of the lab's command line."""
        command = [sys.executable, "-m", "tests.lab", *arguments]
        done = subprocess.run(command, cwd=PROJECT, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ssh(self, node: str, script: str) -> str:
        """Run the shell `script` as root on `node`; return what it prints."""
        options = [
            "-F",
            "none",
            "-i",
            str(self.state / "ssh/id_ed25519"),
            "-o",
            f"UserKnownHostsFile={self.state / 'known_hosts'}",
        ]
        return subprocess.run(
            ["ssh", *options, "-o", "BatchMode=yes", f"ops@{self.nodes[node]}", "sudo", "bash", "-s"],
            input=script,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def wipe(self, *names: str) -> None:
        """Take machines away for good, with their disks."""
        for name in names:
            container = f"slipway-{self.name}-{name}"
            subprocess.run(["podman", "rm", "--force", "--time=0", container], check=True, capture_output=True)
            volumes = [f"{container}-rancher", f"{container}-kubelet"]
            subprocess.run(["podman", "volume", "rm", *volumes], check=True, capture_output=True)

    def kubectl_words(self) -> list[str]:
        """Return the command line that kubectl on this site begins with."""
        return [str(self.state / "bundle/bin/kubectl"), "--kubeconfig", str(self.state / "kubeconfig")]

    def inside(self, namespace: str, target: str, container: str, *command: str) -> str:
        """Run a command in a container of the site; return what it printed."""
        words = [*self.kubectl_words(), "-n", namespace, "exec", target, "-c", container, "--", *command]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    def apply(self, manifest: dict[str, Any]) -> None:
        """Apply an object to the site."""
        command = [*self.kubectl_words(), "apply", "-f", "-"]
        subprocess.run(command, input=json.dumps(manifest), check=True, capture_output=True, text=True)

    def kubectl(self, *arguments: str) -> Any:
        """Run kubectl on the site, return its JSON."""
        command = [*self.kubectl_words(), *arguments, "-o", "json"]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


# Of the platform only what k3s itself packages: what is held to there is the same with all of it, and takes minutes less.
BARE = ("-e", '{"slipway_components": []}')


@pytest.fixture(scope="session")
def cluster(site: Site) -> Site:
    """The lab site with a cluster that has no components."""
    assert site.run("make", "bundle").status == 0
    site.lab("up", "--site", "lab")
    run = site.playbook("cluster", *BARE)
    assert run.status == 0, run.output[-4000:]
    return site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The lab site; removed at the end, however the tests went."""
    inventory = yaml.safe_load((PROJECT / "inventories/lab/hosts.yml").read_text())
    groups = inventory["k3s_cluster"]["children"].values()
    nodes = {name: host["ansible_host"] for group in groups for name, host in group["hosts"].items()}
    site = Site(tmp_path_factory.mktemp("logs"), nodes)
    yield site
    site.run("make", "down")


# The lab's site of several servers.
HA = "lab-ha"
# The suite's part for a site without components runs once; the other runs leave it out.
QUICK = ("--skip-tags", "verify")


class Servers:
    """The site of several servers in an inventory of the test's own, which changes."""

    def __init__(self, folder: Path, logs: Path) -> None:
        self.folder = folder / HA
        self.folder.mkdir()
        shipped = PROJECT / "inventories" / HA
        (self.folder / "group_vars").symlink_to(shipped / "group_vars")
        self.groups = yaml.safe_load((shipped / "hosts.yml").read_text())["k3s_cluster"]["children"]
        self.site = Site(logs, {}, HA, self.folder)
        self.write()

    def write(self) -> None:
        """Write the inventory."""
        text = yaml.safe_dump({"k3s_cluster": {"children": self.groups}}, sort_keys=False)
        (self.folder / "hosts.yml").write_text(text)
        groups = self.groups.values()
        self.site.nodes = {name: host["ansible_host"] for group in groups for name, host in group["hosts"].items()}

    @property
    def servers(self) -> dict[str, dict[str, str]]:
        """Name and variables of each server."""
        hosts: dict[str, dict[str, str]] = self.groups["server"]["hosts"]
        return hosts

    def reorder(self) -> None:
        """Name the same hosts in the opposite order."""
        self.groups["server"]["hosts"] = dict(reversed(self.servers.items()))
        self.groups = dict(reversed(self.groups.items()))
        self.write()

    def machines(self, without: str = "") -> None:
        """Start the machines that the inventory names and that are not there yet, but for one that is lost."""
        groups = {
            group: {"hosts": {name: host for name, host in content["hosts"].items() if name != without}}
            for group, content in self.groups.items()
        }
        path = self.folder.parent / "machines.yml"
        path.write_text(yaml.safe_dump({"k3s_cluster": {"children": groups}}))
        self.site.lab("up", "--site", HA, "--inventory", str(path))

    def wipe(self, *names: str) -> None:
        """Take machines away for good, with their disks; `machines` puts new ones in their place."""
        self.site.wipe(*names)

    def voters(self) -> list[str]:
        """Names of the Nodes that are Ready and vote."""
        found = []
        for item in self.site.kubectl("get", "nodes", "-l", "node-role.kubernetes.io/etcd=true")["items"]:
            conditions = {each["type"]: each["status"] for each in item["status"]["conditions"]}
            if (conditions["Ready"], conditions.get("EtcdIsVoter")) == ("True", "True"):
                found.append(item["metadata"]["name"])
        return sorted(found)

    def succeeds(self, name: str, *words: str) -> Run:
        """Run a playbook that must not fail."""
        run = self.site.playbook(name, *words)
        assert run.status == 0, run.output[-6000:]
        return run

    def changes_nothing(self, *words: str) -> None:
        """Run site.yml, which must find nothing to do."""
        run = self.succeeds("site", *QUICK, *words)
        assert set(run.changed().values()) == {0}, run.changed_tasks()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Three servers and an agent, installed; removed at the end, however the tests went."""
    servers = Servers(tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("logs"))
    site = servers.site
    try:
        assert site.run("make", "bundle", SITE=HA).status == 0
        servers.machines()
        yield servers
    finally:
        site.run("make", "down", SITE=HA)
