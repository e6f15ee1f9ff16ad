"""The front door of a site, from outside the cluster: by its addresses and names, over TLS, without anybody's DNS."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from kubernetes.client.exceptions import ApiException

from .site import Site

NAMESPACE = "front-door"
PAGE = "start-page"
TIMEOUT = 15.0
Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode(errors="replace")


class _Https(http.client.HTTPSConnection):
    """HTTPS to one address, by the name in `host`."""

    def __init__(self, host: str, address: str, context: ssl.SSLContext) -> None:
        super().__init__(host, 443, timeout=TIMEOUT, context=context)
        self._address = address
        self._tls = context

    def connect(self) -> None:
        """Connect to the address, and have the certificate checked for the name."""
        raw = socket.create_connection((self._address, 443), TIMEOUT)
        self.sock = self._tls.wrap_socket(raw, server_hostname=self.host)


class _Http(http.client.HTTPConnection):
    """HTTP to one address, by the name in `host`."""

    def __init__(self, host: str, address: str) -> None:
        super().__init__(host, 80, timeout=TIMEOUT)
        self._address = address

    def connect(self) -> None:
        """Connect to the address."""
        self.sock = socket.create_connection((self._address, 80), TIMEOUT)


class FrontDoor:
    """Requests to a site as people send them.

    Attributes:
        domain: the site's domain, where the start page is.
        addresses: where the front door listens, as the Service in front of Traefik says.
    """

    def __init__(self, site: Site, ca: Path) -> None:
        """Look where it is.

        Args:
            site: the site.
            ca: what is trusted: the site's exported authority, or the certificate that it was given. Where there is no such file, what
                the system trusts.
        """
        self.site = site
        self.ca = ca
        ingress = site.networking.read_namespaced_ingress(PAGE, NAMESPACE)
        self.domain: str = ingress.spec.rules[0].host
        # Whether the site vouches for itself; the page hands that certificate out then.
        self.has_authority: bool = "ca.crt" in site.core.read_namespaced_config_map(PAGE, NAMESPACE).data
        balancer = site.core.read_namespaced_service("traefik", "kube-system").status.load_balancer
        self.addresses: list[str] = [item.ip or item.hostname for item in balancer.ingress or []]
        assert self.addresses, "Service kube-system/traefik has no address: nothing gives LoadBalancer Services theirs"

    def host(self, name: str) -> str:
        """The full name of a component's page: `argocd` is `argocd.<domain>`, empty the domain itself."""
        return f"{name}.{self.domain}" if name else self.domain

    @property
    def login(self) -> tuple[str, str]:
        """The generated user of pages without a login of their own."""
        values = self.site.secret(NAMESPACE, "front-door-user")
        return values["username"], values["password"]

    def context(self, ca: Path | None = None) -> ssl.SSLContext:
        """TLS that trusts only `ca`, without it the site's own."""
        ca = ca or self.ca
        context = ssl.create_default_context(cafile=str(ca) if ca.is_file() else None)
        # A given certificate is trusted as it is, with or without its root in the file.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context

    def get(self, name: str = "", path: str = "/", **options: Any) -> Answer:
        """GET over TLS; see `request`."""
        return self.request("GET", name, path, **options)

    def request(
        self,
        method: str,
        name: str = "",
        path: str = "/",
        *,
        address: str = "",
        login: tuple[str, str] | None = None,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        ca: Path | None = None,
    ) -> Answer:
        """Send one request over TLS and return the answer; redirects are not followed.

        Args:
            method: of the request.
            name: of the page below the domain; empty for the start page.
            path: with the query.
            address: one of `addresses`; without it the first one.
            login: user and password.
            headers: more headers.
            body: of the request.
            ca: trusted instead of the exported authority.

        Raises:
            ssl.SSLCertVerificationError: the certificate is not one of the trusted authority, or for other names.
        """
        connection = _Https(self.host(name), address or self.addresses[0], self.context(ca))
        return _send(connection, method, path, {**_basic(login), **(headers or {})}, body)

    def plain(self, name: str = "", path: str = "/", address: str = "") -> Answer:
        """GET over plain http; redirects are not followed."""
        return _send(_Http(self.host(name), address or self.addresses[0]), "GET", path, {}, None)

    def certificate(self, name: str = "", address: str = "") -> bytes:
        """The certificate that is served for a name (DER), checked."""
        raw = socket.create_connection((address or self.addresses[0], 443), TIMEOUT)
        with self.context().wrap_socket(raw, server_hostname=self.host(name)) as stream:
            return stream.getpeercert(binary_form=True) or b""

    def status(self) -> dict[str, dict[str, Any]]:
        """The start page's list, by component."""
        answer = self.get("", "/status.json", login=self.login)
        assert answer.status == 200, answer
        return {item["name"]: item for item in json.loads(answer.body)["components"]}


def eventually(look: Callable[[], Seen], timeout: float, interval: float = 0.5) -> Seen:
    """Return what `look` returns once it returns something true; what it raises counts as not yet, until the time is over."""
    end = time.monotonic() + timeout
    while True:
        try:
            seen = look()
            last: object = seen
        except (AssertionError, OSError, http.client.HTTPException, ApiException) as error:
            seen, last = None, error
        if seen:
            return seen
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout:g} s; at last: {last!r}")
        time.sleep(interval)


@contextmanager
def watched(front_door: FrontDoor, name: str, path: str, interval: float = 0.2) -> Iterator[list[Answer | Exception]]:
    """Ask for a page again and again while the block runs; the list has every answer, and whatever came instead of one."""
    seen: list[Answer | Exception] = []
    over = threading.Event()

    def ask() -> None:
        while not over.wait(interval):
            try:
                seen.append(front_door.get(name, path))
            # Whoever asked has no answer, for whatever reason.
            except Exception as error:
                seen.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def _basic(login: tuple[str, str] | None) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(":".join(login).encode()).decode()} if login else {}


def _send(
    connection: http.client.HTTPConnection, method: str, path: str, headers: dict[str, str], body: bytes | None
) -> Answer:
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return Answer(answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def ca_option(parser: pytest.Parser, default: Path) -> None:
    """Add the option that names the exported authority."""
    parser.getgroup("slipway").addoption(
        "--ca",
        default=str(default),
        help="certificate of the site's authority, as the installation has exported it, or the one that it was given; "
        "empty for what the system trusts",
    )


@pytest.fixture(scope="session")
def front_door(request: pytest.FixtureRequest, site: Site) -> FrontDoor:
    """The site's front door; skips aloud where it has none."""
    try:
        return FrontDoor(site, Path(request.config.getoption("ca")))
    except ApiException as error:
        if error.status != 404:
            raise
        pytest.skip("the site has no front door")
