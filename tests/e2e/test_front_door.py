"""People reach the site over TLS that they can check, and see what is installed and whether it answers."""

from __future__ import annotations

import base64
import json
import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kubernetes.client.exceptions import ApiException

from .front_door import NAMESPACE, PAGE, FrontDoor, eventually
from .site import Site

HEALTH = "slipway-health-"


@pytest.fixture(scope="module")
def names(front_door: FrontDoor) -> list[str]:
    """The start page, and every page that it lists below the site's domain."""
    hosts = [urlsplit(item["url"]).hostname or "" for item in front_door.status().values() if item["url"]]
    ours = [host for host in hosts if host.endswith(f".{front_door.domain}")]
    return ["", *(host.removesuffix(f".{front_door.domain}") for host in ours)]


@pytest.mark.smoke
def test_every_page_answers_over_tls(front_door: FrontDoor, names: list[str]) -> None:
    """On every address, with a certificate of the exported authority for its name, and not with Traefik's own 404."""
    for address in front_door.addresses:
        for name in names:
            answer = front_door.get(name, address=address)
            # Pages without a login of their own are behind that of the front door.
            if answer.status == 401:
                answer = front_door.get(name, address=address, login=front_door.login)
            assert answer.status < 400, (front_door.host(name), address, answer.status, answer.text[:300])


@pytest.mark.smoke
def test_applications_are_covered(front_door: FrontDoor, site: Site) -> None:
    """A name that nobody serves yet has a valid certificate too, and answers 404; ACME and given certificates may have no wildcard."""
    if not front_door.has_authority:
        pytest.skip("no authority of the site's own")
    assert front_door.get("nobody-is-here").status == 404


@pytest.mark.smoke
def test_another_authority_is_refused(front_door: FrontDoor, tmp_path: Path) -> None:
    """Who trusts somebody else only gets no answer."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Somebody else")])
    now = datetime.now(UTC)
    stranger = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "ca.crt").write_bytes(stranger.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(ssl.SSLCertVerificationError):
        front_door.get("", ca=tmp_path / "ca.crt")


@pytest.mark.smoke
def test_http_leads_to_https(front_door: FrontDoor, names: list[str]) -> None:
    """For every name of the domain, with the path kept."""
    for address in front_door.addresses:
        for name in [*names, "nobody-is-here"]:
            answer = front_door.plain(name, "/a/b?c=d", address)
            assert answer.status in (301, 308), (name, address, answer)
            assert answer.headers["location"] == f"https://{front_door.host(name)}/a/b?c=d"


@pytest.mark.smoke
def test_the_authority_can_be_fetched(front_door: FrontDoor) -> None:
    """Over plain http too and without a user: nobody can check anything before. It is the exported one."""
    if not front_door.has_authority:
        pytest.skip("no authority of the site's own")
    for answer in (front_door.plain("", "/ca.crt"), front_door.get("", "/ca.crt")):
        assert answer.status == 200
        assert answer.text.strip() == front_door.ca.read_text().strip()
        assert "PRIVATE" not in answer.text


@pytest.mark.smoke
def test_strangers_are_refused(front_door: FrontDoor) -> None:
    """The start page answers 401 without a user and with a wrong password."""
    user, _ = front_door.login
    for path in ("/", "/status.json", "/ca.crt/", "/healthz"):
        for login in (None, (user, "wrong"), (user, "")):
            assert front_door.get("", path, login=login).status == 401, (path, login)


@pytest.mark.smoke
def test_the_page_lists_every_component_healthy(front_door: FrontDoor) -> None:
    """Once everything has been checked, in the page for people and in the one for programs."""

    def healthy() -> bool:
        states = {name: item["text"] for name, item in front_door.status().items() if item["state"] != "not checked"}
        assert states
        assert {name: text for name, text in states.items() if text != "Healthy"} == {}
        return True

    # A component that was restarted a moment ago is asked again within seconds.
    eventually(healthy, 60)
    page = front_door.get("", login=front_door.login)
    for name, item in front_door.status().items():
        assert item["version"] in page.text, name
        assert f'id="state-{name}" data-state="healthy"' in page.text or item["state"] == "not checked"
    assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.smoke
def test_the_page_shows_no_secret(front_door: FrontDoor, site: Site) -> None:
    """It names Secrets; no generated password or key is in it."""
    page = front_door.get("", login=front_door.login).text + json.dumps(front_door.status())
    listed = site.core.list_secret_for_all_namespaces(label_selector="app.kubernetes.io/managed-by=slipway").items
    # Names of users and endpoints are no secrets.
    secrets = {
        f"{item.metadata.namespace}/{item.metadata.name}:{key}": base64.b64decode(value)
        .decode(errors="replace")
        .strip()
        for item in listed
        for key, value in (item.data or {}).items()
        if re.search(r"(?i)pass|secret|token|\.(read|write|key)$", key)
    }
    assert front_door.login[1] in secrets.values()
    shown = [where for where, value in secrets.items() if value and value in page]
    assert shown == []


@pytest.mark.fault
def test_a_lost_certificate_is_issued_again(front_door: FrontDoor, site: Site) -> None:
    """Somebody deletes the Secret: another certificate, checked against the same authority, is served within a minute."""
    store = site.custom.get_namespaced_custom_object("traefik.io", "v1alpha1", NAMESPACE, "tlsstores", "default")
    secret = store["spec"]["defaultCertificate"]["secretName"]
    certificates = site.custom.list_namespaced_custom_object("cert-manager.io", "v1", NAMESPACE, "certificates")
    if secret not in [item["spec"]["secretName"] for item in certificates["items"]]:
        pytest.skip("the certificate is a given one")
    before = front_door.certificate()
    site.core.delete_namespaced_secret(secret, NAMESPACE)

    def replaced() -> bool:
        return all(front_door.certificate(address=address) != before for address in front_door.addresses)

    eventually(replaced, 60)
    assert front_door.get("", login=front_door.login).status == 200


@pytest.fixture
def cut_off(front_door: FrontDoor, site: Site) -> Iterator[str]:
    """A component that the start page cannot reach: the flow to it is closed."""
    policies = site.networking.list_namespaced_network_policy(NAMESPACE).items
    flows = sorted(item.metadata.name for item in policies if item.metadata.name.startswith(HEALTH))
    assert flows
    policy: Any = site.networking.read_namespaced_network_policy(flows[-1], NAMESPACE)
    site.networking.delete_namespaced_network_policy(flows[-1], NAMESPACE)
    yield flows[-1].removeprefix(HEALTH)
    policy.metadata.resource_version = policy.metadata.uid = None
    site.networking.create_namespaced_network_policy(NAMESPACE, policy)


@pytest.mark.fault
def test_the_page_shows_what_does_not_answer(front_door: FrontDoor, cut_off: str) -> None:
    """Within seconds, with the time and the reason; the page itself stays quick."""

    def seen() -> str:
        item = front_door.status()[cut_off]
        return item["text"] if item["state"] == "not answering" else ""

    text = eventually(seen, 60)
    # Some controllers refuse what no flow allows, others drop it.
    assert re.fullmatch(
        r"Not answering since \d+ \w+ 20\d\d, \S+ UTC: (no answer within 3 s|the connection is refused)", text
    )
    started = datetime.now(UTC)
    page = front_door.get("", login=front_door.login).text
    assert datetime.now(UTC) - started < timedelta(seconds=2)
    assert f'id="state-{cut_off}" data-state="not answering"' in page
    others = {name: item["state"] for name, item in front_door.status().items() if name != cut_off}
    assert set(others.values()) <= {"healthy", "not checked"}


@pytest.mark.fault
def test_the_page_comes_back(front_door: FrontDoor, site: Site) -> None:
    """Its pod is deleted: another one serves."""
    try:
        site.core.delete_collection_namespaced_pod(NAMESPACE, label_selector=f"app.kubernetes.io/name={PAGE}")
    except ApiException as error:
        raise AssertionError(f"cannot delete the page's pod: {error.reason}") from error
    eventually(lambda: front_door.get("", login=front_door.login).status == 200, 60)
