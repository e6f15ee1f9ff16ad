"""What `down` takes away after the last node, and what it leaves alone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.lab import residue


class Machine:
    """Answers for podman, nft and iptables, and records what would change."""

    def __init__(self) -> None:
        self.running = ""
        self.tables: list[str] = []
        self.rules: list[str] = []
        self.changes: list[str] = []

    def run(self, command: list[Any], **_: Any) -> subprocess.CompletedProcess[str]:
        text = " ".join(str(word) for word in command)
        answer = ""
        if text == "podman ps --quiet":
            answer = self.running
        elif text == "nft --json list tables ip":
            answer = json.dumps({"nftables": [{"metainfo": {}}, *({"table": {"name": name}} for name in self.tables)]})
        elif " -S" in text:
            answer = "\n".join(["-P INPUT ACCEPT", *self.rules])
        else:
            self.changes.append(text)
        return subprocess.CompletedProcess(command, 0, answer, "")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    fake = Machine()
    monkeypatch.setattr(residue, "run", fake.run)
    monkeypatch.setattr(residue, "mounts", lambda: [])
    monkeypatch.setattr(residue, "NOTE", tmp_path / "before.json")
    monkeypatch.setattr(residue, "CGROUPS", tmp_path / "cgroup")
    return fake


def test_fresh_machine_gets_its_tables_removed(machine: Machine) -> None:
    residue.remember()
    machine.tables = ["filter", "nat"]
    residue.restore()
    assert "iptables --wait -t nat -X NETAVARK-HOSTPORT-DNAT" in machine.changes
    assert {"nft delete table ip filter", "nft delete table ip nat"} <= set(machine.changes)
    machine.changes.clear()
    residue.restore()
    assert machine.changes == []


def test_tables_with_rules_of_others_stay(machine: Machine) -> None:
    residue.remember()
    machine.tables, machine.rules = ["filter"], ["-A INPUT -p tcp --dport 22 -j ACCEPT"]
    residue.restore()
    assert "nft delete table ip filter" not in machine.changes


def test_what_was_there_before_stays(machine: Machine) -> None:
    machine.tables, machine.rules = ["filter", "nat"], ["-N NETAVARK_FORWARD"]
    residue.remember()
    residue.restore()
    assert machine.changes == []


def test_nothing_is_removed_while_a_container_runs(machine: Machine) -> None:
    residue.remember()
    machine.tables, machine.running = ["filter", "nat"], "0123abcd"
    residue.restore()
    assert machine.changes == []
    machine.running = ""
    residue.restore()
    assert machine.changes != []


def test_cgroups_of_a_node_are_removed_to_the_bottom(machine: Machine, tmp_path: Path) -> None:
    parent = tmp_path / "cgroup/pids/libpod_parent"
    (parent / "libpod-abc/init.scope/x").mkdir(parents=True)
    (parent / "libpod-def").mkdir()
    residue.remove_cgroups("abc")
    assert [path.name for path in parent.iterdir()] == ["libpod-def"]
