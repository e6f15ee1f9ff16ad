"""What people trust does not change without a word, and what another authority has signed is issued anew."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import basic
from ansible.module_utils.slipway import cert_manager
from ansible.module_utils.slipway.cert_manager import Authority
from ansible.module_utils.slipway.certificates import describe
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, KubeError

from modules import cert_manager as module
from modules import tls_secret

from .authorities import Made, make, write
from .fakes import FakeKube, run_module

ROOT, OTHER = make("Root", authority=True), make("Root", authority=True)
SECRET = "/api/v1/namespaces/cert-manager/secrets/slipway-ca"
CERTIFICATES = f"{cert_manager.API}/certificates"


def secret(*chain: Made) -> Json:
    pem = "".join(each.pem for each in chain)
    return {"data": {"tls.crt": base64.b64encode(pem.encode()).decode()}, "metadata": {"resourceVersion": "1"}}


@pytest.fixture
def kube(monkeypatch: pytest.MonkeyPatch) -> FakeKube:
    """The cluster that the modules see; it has an authority."""
    fake = FakeKube({SECRET: secret(ROOT)})
    for each in (module, tls_secret):
        monkeypatch.setattr(each, "KubeClient", lambda *_: fake)
    return fake


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority("cert-manager", "slipway-ca", tmp_path / "ca.crt")


def arguments(tmp_path: Path, state: str, **more: Any) -> Json:
    export = str(tmp_path / "ca.crt")
    return {"kubeconfig": "/k", "state": state, "secret": "slipway-ca", "export": export, "timeout": 0, **more}


def judge(tmp_path: Path, **more: Any) -> Json:
    return run_module(module, arguments(tmp_path, "judged", **more))


def test_nothing_is_exported_yet(kube: FakeKube, tmp_path: Path) -> None:
    assert judge(tmp_path)["changed"] is False
    del kube.objects[SECRET]
    assert judge(tmp_path)["changed"] is False


def test_the_exported_authority_or_a_renewed_one(kube: FakeKube, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text(ROOT.pem)
    assert judge(tmp_path)["changed"] is False
    kube.objects[SECRET] = secret(make("Root", key=ROOT.key, authority=True))
    assert not judge(tmp_path).get("failed")


def test_a_lost_authority_stops_the_run(kube: FakeKube, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text(ROOT.pem)
    del kube.objects[SECRET]
    said = judge(tmp_path)["msg"]
    assert "certificate authority is lost: Secret cert-manager/slipway-ca is gone" in said
    assert "CN=Root (valid until" in said and "-e cert_manager_accept_new_ca=true" in said
    assert not judge(tmp_path, accept=True).get("failed")


def test_another_authority_stops_the_run(kube: FakeKube, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text(ROOT.pem)
    kube.objects[SECRET] = secret(OTHER)
    said = judge(tmp_path)["msg"]
    assert "The certificate authority in Secret cert-manager/slipway-ca is another one" in said
    assert describe(ROOT.certificate) in said and describe(OTHER.certificate) in said
    assert not judge(tmp_path, accept=True).get("failed")


def test_a_given_authority_is_judged_before_it_is_anywhere(kube: FakeKube, tmp_path: Path) -> None:
    certificate, key = write(tmp_path, "own", OTHER)
    given = {"certificate": certificate, "key": key}
    assert not judge(tmp_path, **given).get("failed")
    (tmp_path / "ca.crt").write_text(ROOT.pem)
    assert "The certificate authority that is given is another one" in judge(tmp_path, **given)["msg"]
    assert not judge(tmp_path, accept=True, **given).get("failed")
    assert "No such file" in judge(tmp_path, certificate="/none.crt", key="/none.key")["msg"]
    assert (
        "may not issue"
        in judge(tmp_path, **dict(zip(given, write(tmp_path, "leaf", make("leaf")), strict=True)))["msg"]
    )
    assert "parameters are required together" in judge(tmp_path, certificate=certificate)["msg"]


def test_a_broken_export_is_named(kube: FakeKube, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("nothing")
    assert f"{tmp_path}/ca.crt holds no certificate" in judge(tmp_path)["msg"]


def issuer(kube: FakeKube, status: str = "True", message: str = "") -> None:
    condition = {"type": "Ready", "status": status, "message": message, "observedGeneration": 1}
    kube.objects[f"{cert_manager.API}/clusterissuers/slipway"] = {
        "metadata": {"generation": 1},
        "spec": {"ca": {"secretName": "slipway-ca"}},
        "status": {"conditions": [condition]},
    }


def test_the_export_is_written_once(kube: FakeKube, tmp_path: Path) -> None:
    issuer(kube)
    middle = make("Middle", ROOT, authority=True)
    kube.objects[SECRET] = secret(middle, ROOT)
    assert run_module(module, arguments(tmp_path, "issuing"), check=True)["changed"] is True
    assert not (tmp_path / "ca.crt").exists()
    first = run_module(module, arguments(tmp_path, "issuing"))
    assert first["changed"] and first["diff"]["before"] == ""
    assert (tmp_path / "ca.crt").read_text() == ROOT.pem
    assert run_module(module, arguments(tmp_path, "issuing"))["changed"] is False


def test_an_issuer_that_does_not_issue(kube: FakeKube, tmp_path: Path) -> None:
    assert "ClusterIssuer slipway: it does not exist" in run_module(module, arguments(tmp_path, "issuing"))["msg"]
    issuer(kube, "False", "secret has no key")
    assert "ClusterIssuer slipway: secret has no key" in run_module(module, arguments(tmp_path, "issuing"))["msg"]
    looked = run_module(module, arguments(tmp_path, "issuing"), check=True)
    assert looked["waiting"] == {"ClusterIssuer slipway": "secret has no key"}
    issuer(kube)
    del kube.objects[SECRET]
    assert "holds no certificate although" in run_module(module, arguments(tmp_path, "issuing"))["msg"]
    # Of an ACME authority there is nothing to export.
    assert run_module(module, arguments(tmp_path, "issuing", secret=""))["changed"] is False


def certificate(kube: FakeKube, name: str, made: Made | None, issuer: str = "slipway") -> Json:
    item: Json = {
        "metadata": {"namespace": "apps", "name": name, "resourceVersion": "1", "generation": 3},
        "spec": {"secretName": f"{name}-tls", "issuerRef": {"kind": "ClusterIssuer", "name": issuer}},
        "status": {"conditions": [{"type": "Ready", "status": "True", "observedGeneration": 3}]},
    }
    kube.objects.setdefault(CERTIFICATES, {"items": []})["items"].append(item)
    kube.objects[f"{cert_manager.API}/namespaces/apps/certificates/{name}"] = item
    kube.objects[f"{cert_manager.API}/namespaces/apps/certificates/{name}/status"] = item
    if made:
        kube.objects[f"/api/v1/namespaces/apps/secrets/{name}-tls"] = secret(made)
    return item


class CertManager(FakeKube):
    """Issues anew what it is told to."""

    def merge_patch(self, path: str, body: Json) -> Json:
        name = path.split("/")[-2]
        self.objects[f"/api/v1/namespaces/apps/secrets/{name}-tls"] = secret(make("new", ROOT))
        return super().merge_patch(path, body)


def run(kube: FakeKube, tmp_path: Path, state: str, check: bool = False, **more: Any) -> Json:
    params = {**arguments(tmp_path, state), "namespace": "cert-manager", "issuer": "slipway", **more}
    result: Json = getattr(module.Run(kube, params, check), state)()
    return result


def test_what_the_old_authority_has_signed_is_issued_anew(tmp_path: Path) -> None:
    """And nothing else is: not another issuer's, not one that is new, not one that was never issued."""
    kube = CertManager({SECRET: secret(ROOT)})
    issuer(kube)
    (tmp_path / "ca.crt").write_text(ROOT.pem)
    old = certificate(kube, "old", make("old", OTHER))
    certificate(kube, "new", make("new", ROOT))
    certificate(kube, "foreign", make("foreign", OTHER), issuer="letsencrypt")
    certificate(kube, "pending", None)
    assert run(kube, tmp_path, "issuing", check=True)["renewed"] == ["apps/old"] and not kube.writes
    done = run(kube, tmp_path, "issuing")
    assert (done["renewed"], done["changed"], done["waiting"]) == (["apps/old"], True, {})
    assert kube.writes == [f"{cert_manager.API}/namespaces/apps/certificates/old/status"]
    issuing = old["status"]["conditions"][-1]
    assert (issuing["type"], issuing["status"], issuing["reason"]) == ("Issuing", "True", "ManuallyTriggered")
    assert run(kube, tmp_path, "issuing")["changed"] is False


def test_a_certificate_that_finds_an_old_secret_is_issued_anew(tmp_path: Path) -> None:
    """cert-manager takes a Secret that was left of an earlier time for its own and calls the Certificate ready."""
    kube = CertManager({SECRET: secret(ROOT)})
    issuer(kube)
    certificate(kube, "front-door", make("old", OTHER))
    certificate(kube, "another", make("old", OTHER))
    wanted = [{"namespace": "apps", "name": "front-door"}]
    done = run(kube, tmp_path, "issued", certificates=wanted)
    assert (done["changed"], done["renewed"]) == (True, ["apps/front-door"])
    assert run(kube, tmp_path, "issued", certificates=wanted)["changed"] is False
    # With ACME nobody knows the signer beforehand.
    kube.objects[f"{cert_manager.API}/clusterissuers/slipway"]["spec"] = {"acme": {}}
    assert run(kube, tmp_path, "issued", certificates=[{"namespace": "apps", "name": "another"}])["renewed"] == []


def test_waiting_for_a_certificate_says_what_hinders_it(kube: FakeKube) -> None:
    options = {
        "kubeconfig": "/k",
        "state": "issued",
        "timeout": 0,
        "certificates": [{"namespace": "apps", "name": "x"}],
    }
    assert "Certificate apps/x: it does not exist" in run_module(module, options)["msg"]
    item = certificate(kube, "x", None)
    assert run_module(module, options)["waiting"] == {}
    item["metadata"]["generation"] = 4
    assert "has not looked at its last change yet" in run_module(module, options)["msg"]
    item["status"]["conditions"][0] = {"type": "Ready", "status": "False", "message": "Issuing certificate"}
    kube.objects[f"{cert_manager.API}/namespaces/apps/certificaterequests"] = {
        "items": [
            {
                "metadata": {"creationTimestamp": stamp, "annotations": {"cert-manager.io/certificate-name": name}},
                "status": {"conditions": [{"type": "Ready", "status": "False", "message": message}]},
            }
            for stamp, name, message in [("1", "x", "old"), ("2", "x", "Waiting for the order"), ("3", "y", "another")]
        ]
    }
    kube.objects[f"{cert_manager.ACME}/namespaces/apps/challenges"] = {
        "items": [{"metadata": {}, "spec": {"dnsName": "x.org"}, "status": {"reason": "no route to host"}}]
    }
    said = run_module(module, options)["msg"]
    assert (
        "Certificate apps/x: Issuing certificate; CertificateRequest: Waiting for the order; "
        "Challenge for x.org: no route to host" in said
    )
    assert "kubectl -n cert-manager logs deployment/cert-manager" in said


def test_the_webhook_is_asked_without_making_anything() -> None:
    class Webhook(FakeKube):
        def create(self, path: str, body: Json) -> Json:
            assert path.endswith("/issuers?dryRun=All")
            if self.objects:
                return body
            raise KubeError("POST: 500 failed calling webhook: connection refused", 500)

    kube = Webhook()
    assert "failed calling webhook" in cert_manager.answers(kube, "cert-manager")
    kube.objects["ready"] = {}
    assert cert_manager.answers(kube, "cert-manager") == ""


def test_a_secret_that_holds_no_certificate_is_named(authority: Authority) -> None:
    for data in ("bm90aGluZw==", "%%%"):
        with pytest.raises(SlipwayError, match=r"Secret cert-manager/slipway-ca, key tls\.crt"):
            authority.chain(FakeKube({SECRET: {"data": {"tls.crt": data}}}))
    assert authority.chain(FakeKube({SECRET: {"data": {}}})) == []


class Applying(FakeKube):
    """With server-side apply of whole objects."""

    def apply(self, path: str, body: Json, manager: str, dry_run: bool = False) -> Json:
        self.writes.append(path)
        self.objects[path] = {**body, "metadata": {**body["metadata"], "resourceVersion": "1"}}
        return self.objects[path]


def test_a_given_certificate_becomes_a_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kube = Applying()
    monkeypatch.setattr(tls_secret, "KubeClient", lambda *_: kube)
    leaf = make("leaf", ROOT, ("a.org", "*.a.org"))
    certificate, key = write(tmp_path, "x", leaf, ROOT)
    options: Json = {
        **{"kubeconfig": "/k", "namespace": "front-door", "name": "given", "names": ["a.org", "b.a.org"]},
        **{"certificate": certificate, "key": key},
    }
    check = run_module(tls_secret, options, check=True)
    assert check["changed"] and not kube.writes
    first, again = run_module(tls_secret, options), run_module(tls_secret, options)
    assert (first["changed"], again["changed"]) == (True, False)
    (made,) = kube.objects.values()
    assert made["type"] == "kubernetes.io/tls"
    assert base64.b64decode(made["data"]["tls.key"]).decode() == leaf.key_pem
    write(tmp_path, "x", make("leaf", ROOT, ("a.org", "*.a.org")), ROOT)
    renewed = run_module(tls_secret, options)
    assert renewed["changed"] and renewed["diff"]["before"] == f"certificate SHA-256 {first['fingerprint']}\n"
    shown = json.dumps([check, first, again, renewed])
    assert "PRIVATE" not in shown and made["data"]["tls.key"] not in shown
    write(tmp_path, "x", make("leaf", ROOT, ("b.org",), days=(-9, -1)))
    refused = run_module(tls_secret, options)["msg"]
    assert "expired on" in refused and "it is for b.org, not for a.org, b.a.org" in refused


def test_a_certificate_that_ends_soon_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tls_secret, "KubeClient", lambda *_: Applying())
    certificate, key = write(tmp_path, "x", make("leaf", ROOT, days=(-9, 3)))
    options = {"kubeconfig": "/k", "namespace": "n", "name": "s", "certificate": certificate, "key": key}
    said: list[str] = []
    monkeypatch.setattr(basic.AnsibleModule, "warn", lambda _, text: said.append(text))
    assert run_module(tls_secret, options)["changed"]
    assert len(said) == 1 and "CN=leaf expires on" in said[0]
