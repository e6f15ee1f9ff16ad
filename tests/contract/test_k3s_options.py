"""How options and configuration files are read: k3s docs installation/configuration, pkg/configfilearg."""

from __future__ import annotations

import pytest

from tests.contract.conftest import Node

# Fails when nodes are identified, which is before anything is touched: it lets a test see that reading went well.
STOP = "node-ip: nonsense\n"


def attempt(node: Node, role: str, scratch: str, config: str, flags: str = "") -> tuple[int, str]:
    """Exit status and output of `k3s ROLE` with a configuration file of its own."""
    node.write(f"{scratch}/config.yaml", config)
    result = node.try_run(f"timeout 20 k3s {role} --config {scratch}/config.yaml --data-dir {scratch}/data {flags}")
    return result.rc, result.out + result.err


def test_unknown_key_warns_a_server(server: Node, scratch: str) -> None:
    """A server skips unknown keys of the file with a warning: a typo is silently inactive (k3s #6565)."""
    rc, output = attempt(server, "server", scratch, f"no-such-key: 1\n{STOP}")
    assert rc == 1 and "Unknown flag --no-such-key found in config.yaml, skipping" in output
    assert "nonsense" in output


def test_unknown_key_ends_an_agent(agent: Node, scratch: str) -> None:
    """For an agent an unknown key is an unknown flag: usage text and exit, as with the servers' file (k3s #10513)."""
    rc, output = attempt(agent, "agent", scratch, "disable: [traefik]\ntoken: t\nserver: https://127.0.0.1:1\n")
    assert rc == 1 and "flag provided but not defined: -disable" in output and "Incorrect Usage" in output


@pytest.mark.parametrize("role", ["server", "agent"])
def test_unknown_flag_ends_both(agent: Node, scratch: str, role: str) -> None:
    """An unknown flag on the command line is fatal (facts part 3)."""
    rc, output = attempt(agent, role, scratch, "", "--no-such-flag")
    assert rc == 1 and "flag provided but not defined: -no-such-flag" in output


@pytest.mark.parametrize(
    ("config", "message"),
    [("tls-san: [a\n", "config.yaml"), ("https-listen-port: many\n", "https-listen-port"), ("cluster-init: perhaps\n", "cluster-init")],
)  # fmt: skip
def test_broken_files_and_values_end_the_start(server: Node, scratch: str, config: str, message: str) -> None:
    """Broken YAML and values of the wrong type are fatal (facts part 15 no. 5)."""
    rc, output = attempt(server, "server", scratch, config)
    assert rc == 1 and message in output


def test_a_named_file_must_exist(server: Node) -> None:
    """The default file may be missing, one named by flag may not (facts part 3)."""
    result = server.try_run("timeout 20 k3s server --config /no/such/file")
    assert result.rc == 1 and "/no/such/file" in result.err


@pytest.mark.parametrize(
    ("config", "message"),
    [("server: https://127.0.0.1:1\n", "--token is required"), ("token: t\n", "--server is required")],
)
def test_agents_need_token_and_server(agent: Node, scratch: str, config: str, message: str) -> None:
    """Texts as k3s words them (k3s pkg/cli/agent)."""
    rc, output = attempt(agent, "agent", scratch, config)
    assert rc == 1 and message in output


def test_directory_is_read_after_the_file(server: Node, scratch: str) -> None:
    """config.yaml.d/*.yaml follow in name order and the last value wins (docs configuration)."""
    server.run(f"mkdir {scratch}/config.yaml.d")
    server.write(f"{scratch}/config.yaml.d/20.yaml", "node-ip: last-one\n")
    server.write(f"{scratch}/config.yaml.d/10.yaml", "node-ip: not-this\n")
    rc, output = attempt(server, "server", scratch, STOP)
    assert rc == 1 and "last-one" in output


def test_root_is_needed(server: Node) -> None:
    """Nodes run as root (k3s pkg/cli/server/server.go)."""
    result = server.try_run("setpriv --reuid=65534 --clear-groups k3s server --config /dev/null")
    assert result.rc == 1 and "must run as root" in result.err
