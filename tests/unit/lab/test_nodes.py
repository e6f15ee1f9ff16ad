"""What the lab asks podman and ssh to do."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.lab import cli, faults, hardware, nodes
from tests.lab.process import LabError, run
from tests.lab.site import Site, site_of


@pytest.fixture
def site(tmp_path: Path) -> Site:
    listed = {
        "_meta": {
            "hostvars": {"s1": {"ansible_host": "10.9.0.11"}, "a1": {"ansible_host": "10.9.0.12", "lab_gpus": 2}}
        },
        "k3s_cluster": {"hosts": ["s1", "a1"]},
    }
    read = site_of("x", listed, Path("hosts.yml"))
    return Site(read.name, read.nodes, tmp_path, read.gpus)


class Podman:
    """Records podman's commands and answers from a table, by the first words."""

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers
        self.commands: list[str] = []

    def __call__(self, command: list[Any], **_: Any) -> subprocess.CompletedProcess[str]:
        text = " ".join(str(word) for word in command)
        self.commands.append(text)
        answer = next((answer for start, answer in self.answers.items() if text.startswith(start)), "")
        return subprocess.CompletedProcess(command, 0, answer, "")


def test_node_command_holds_what_several_systemds_need(site: Site) -> None:
    words = nodes.run_words(site, "a1", "localhost/node:1")
    text = " ".join(words)
    for wanted in (
        "--name=slipway-x-a1", "--hostname=a1", "--network=slipway-x", "--ip=10.9.0.12", "--label=slipway.site=x",
        "--label=slipway.node=a1", "--mac-address=02:4c:0a:09:00:0c", "--systemd=false", "--cgroupns=private", "--privileged", "--pids-limit=-1",
        "--tmpfs=/run:rw,mode=755,exec", "--volume=slipway-x-a1-rancher:/var/lib/rancher",
        "--volume=slipway-x-a1-kubelet:/var/lib/kubelet",
    ):  # fmt: skip
        assert wanted in words, text
    assert words[-1] == "localhost/node:1"


def test_each_node_gets_its_own_machine_id(site: Site) -> None:
    ids = {word for _ in range(2) for word in nodes.run_words(site, "a1", "i") if "container_uuid" in word}
    assert len(ids) == 2


def test_network_is_created_without_names(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    podman = Podman({"podman network inspect": "[]"})
    monkeypatch.setattr(nodes, "run", podman)
    nodes.ensure_network(site)
    assert podman.commands[-1] == (
        "podman network create --disable-dns --subnet=10.9.0.0/24 --gateway=10.9.0.1 --label=slipway.site=x slipway-x"
    )


def test_network_with_other_addresses_is_reported(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.dumps([{"subnets": [{"subnet": "10.8.0.0/24"}]}])
    monkeypatch.setattr(nodes, "run", Podman({"podman network inspect": found}))
    with pytest.raises(
        LabError, match=r"slipway-x exists with \['10\.8\.0\.0/24'\], not 10\.9\.0\.0/24.*down --site x"
    ):
        nodes.ensure_network(site)


def test_host_keys_are_written_for_address_and_name(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "run", Podman({"podman exec": "ssh-ed25519 AAAA root@somewhere\n"}))
    nodes.write_known_hosts(site)
    assert site.known_hosts.read_text() == "10.9.0.11,s1 ssh-ed25519 AAAA\n10.9.0.12,a1 ssh-ed25519 AAAA\n"


def test_ssh_checks_host_keys(site: Site) -> None:
    text = " ".join(nodes.ssh_words(site, "s1"))
    assert "StrictHostKeyChecking=yes" in text
    assert f"UserKnownHostsFile={site.known_hosts}" in text
    assert text.endswith("ops@10.9.0.11")


def test_every_fault_can_be_undone() -> None:
    undo = {"stop": "start", "kill": "start", "pause": "unpause", "isolate": "reconnect", "fill-disk": "free-disk"}
    assert set(faults.FAULTS) == set(undo) | set(undo.values())
    assert set(faults.GPU_FAULTS) == {"break-gpu", "mend-gpu"}


def test_fault_on_an_unknown_node_is_refused(site: Site) -> None:
    with pytest.raises(LabError, match="has no node 'b'"):
        faults.inject(site, "b", "stop")


def test_gpus_are_written_by_a_program_that_runs_on_the_node(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    podman = Podman({})
    monkeypatch.setattr(nodes, "run", podman)
    nodes.write_hardware(site, "a1")
    assert podman.commands == ["podman exec --interactive slipway-x-a1 python3 - a1 2"]


def test_a_gpu_breaks_and_is_mended(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    podman = Podman({})
    monkeypatch.setattr(nodes, "run", podman)
    faults.inject_gpu(site, "a1", "break-gpu", 1, "too hot")
    faults.inject_gpu(site, "a1", "mend-gpu", 1, "")
    file = f"/var/lib/lab-hardware/faults/{hardware.gpu_uuid('a1', 1)}"
    assert podman.commands == [
        f'podman exec --interactive slipway-x-a1 sh -c cat >"$0" {file}',
        f"podman exec slipway-x-a1 rm -f {file}",
    ]


@pytest.mark.parametrize("index", [None, -1, 2])
def test_fault_of_a_gpu_that_is_not_there_is_refused(site: Site, index: int | None) -> None:
    with pytest.raises(LabError, match=f"break-gpu: node a1 has 2 GPUs, numbered from 0; {index} is none"):
        faults.inject_gpu(site, "a1", "break-gpu", index, "")


def test_error_of_a_program_shows_its_end() -> None:
    with pytest.raises(LabError, match=r"sh -c .* failed with status 3:\n  the reason"):
        run(["sh", "-c", "echo the reason >&2; exit 3"])


def test_missing_program_is_named() -> None:
    with pytest.raises(LabError, match=r"no-such-program: no such program"):
        run(["no-such-program"])


def test_command_line_reports_without_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--site", "x", "--inventory", "/nowhere/hosts.yml"]) == 1
    assert capsys.readouterr().err == "lab: /nowhere/hosts.yml: no such file\n"
