"""The address that servers share: what is written for keepalived, and the check that it runs."""

from __future__ import annotations

import importlib.util
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from filter.api_address import interface_of

from .plays import PROJECT, outcome

ROLE = PROJECT / "roles/api_address"
FACTS = {
    "interfaces": ["lo", "br-lan", "eth0"],
    "lo": {"device": "lo", "ipv4": {"address": "127.0.0.1"}},
    "br_lan": {"device": "br-lan", "ipv4": {"address": "192.0.2.1"}, "ipv4_secondaries": [{"address": "192.0.2.12"}]},
    "eth0": {"device": "eth0", "ipv4": {"address": "192.0.2.11"}},
}


def test_the_interface_of_an_address() -> None:
    assert interface_of(FACTS, "192.0.2.11") == "eth0"
    assert interface_of(FACTS, "192.0.2.12") == "br-lan"
    with pytest.raises(AnsibleFilterError, match="api_address_interface"):
        interface_of(FACTS, "server-1")


def test_the_configuration_names_every_other_server(tmp_path: Path) -> None:
    """In an order that the inventory does not decide, without those that are gone."""
    (tmp_path / "play.yml").write_text(
        f"""
- hosts: localhost
  gather_facts: false
  vars:
    slipway_servers: [server-1, server-3, server-2]
    api_address_interface: ""
    api_address_router_id: 7
    k3s_api_address: 192.0.2.9
    ansible_host: 192.0.2.11
    inventory_hostname: server-1
  vars_files: [{ROLE}/vars/main.yml]
  tasks:
    - add_host: {{name: "server-{{{{ item }}}}", ansible_host: "192.0.2.1{{{{ item }}}}"}}
      loop: [1, 2, 3]
    - copy:
        content: "{{{{ {{'text': lookup('template', '{ROLE}/templates/keepalived.conf.j2')}} | to_json }}}}"
        dest: {tmp_path}/out.json
        mode: "0600"
      vars:
        ansible_facts: {FACTS}
"""
    )
    text = " ".join(outcome(tmp_path, {})["text"].split())
    assert "interface eth0 virtual_router_id 7" in text
    assert "unicast_src_ip 192.0.2.11 unicast_peer { 192.0.2.12 192.0.2.13 }" in text
    assert "virtual_ipaddress { 192.0.2.9/32 }" in text
    assert 'script "/etc/slipway-api-address/answers"' in text


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """The program that keepalived runs."""
    spec = importlib.util.spec_from_file_location("answers", ROLE / "files/answers.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Api(BaseHTTPRequestHandler):
    """/readyz of an API server that is ready, or not."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's certificates: one that stands for all of them."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "1",
            ),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(folder / "client-admin.key"), "-out", str(folder / "client-admin.crt")),
        ],
        check=True,
        capture_output=True,
    )
    (folder / "server-ca.crt").write_text((folder / "client-admin.crt").read_text())
    return folder


@pytest.fixture
def api(tls: Path) -> Iterator[str]:
    """An API server that asks for a certificate, and its address."""
    server = HTTPServer(("127.0.0.1", 0), Api)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tls / "server-ca.crt"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(tls / "client-admin.crt", tls / "client-admin.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}/readyz"
    server.shutdown()
    server.server_close()


def test_only_a_ready_server_keeps_the_address(
    check: ModuleType, tls: Path, api: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check.answers(str(tls), api)
    monkeypatch.setattr(Api, "status", 500)
    assert not check.answers(str(tls), api)
    assert not check.answers(str(tls), "https://127.0.0.1:1/readyz")
    # k3s has never run here.
    assert not check.answers(str(tmp_path), api)
