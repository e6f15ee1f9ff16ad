"""What the roles cert_manager and front_door make of a site's settings."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[3]
IMAGES = {
    "cert_manager_controller": "quay.io/jetstack/cert-manager-controller:v1.21.2",
    "cert_manager_webhook": "quay.io/jetstack/cert-manager-webhook:v1.21.2",
    "cert_manager_cainjector": "quay.io/jetstack/cert-manager-cainjector:v1.21.2",
    "services": "localhost/slipway/services:1",
}
PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    # For the roles' variables only.
    - import_role: {name: cert_manager, tasks_from: configure}
      when: false
    - import_role: {name: front_door, tasks_from: configure}
      when: false
    - copy:
        content: >-
          {{ {'values': _cert_manager_fixed_values | merge_values(cert_manager_values), 'issuers': _cert_manager_objects,
              'cert_manager_flows': _cert_manager_flows, 'secret': _cert_manager_secret, 'flows': _front_door_flows,
              'objects': _front_door_objects, 'certificate': _front_door_certificate_objects} | to_json }}
        dest: DEST
        mode: "0600"
"""
Rendered = dict[str, Any]


@pytest.fixture(scope="module")
def render(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Rendered]:
    """Renders the roles' variables for a site of which an authority was exported, with more variables."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "ca.crt").write_text("PEM\n")
    (folder / "play.yml").write_text(PLAY.replace("DEST", str(folder / "out.json")))

    def run(**variables: Any) -> Rendered:
        given = {
            "slipway_bundle": {"images": IMAGES, "versions": {"argocd": "v3.2.6"}, "artifacts": []},
            "slipway_state_dir": str(folder),
            "slipway_site": "ml",
            "slipway_domain": "ml.example.org",
            "slipway_components": ["cert_manager", "front_door", "git", "argocd"],
            "playbook_dir": str(PROJECT / "playbooks"),
            **variables,
        }
        command = ["-m", "ansible", "playbook", "-i", str(PROJECT / "inventories/example")]
        command += ["-e", f"@{PROJECT}/playbooks/group_vars/all/site.yml", "-e", json.dumps(given)]
        answer = subprocess.run(
            [sys.executable, *command, str(folder / "play.yml")],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr[-3000:]
        result: Rendered = json.loads((folder / "out.json").read_text())
        return result

    return run


@pytest.fixture(scope="module")
def usual(render: Callable[..., Rendered]) -> Rendered:
    """A site as most are, with a link and a chart's value of its own."""
    return render(
        front_door_links=[{"name": "wiki", "title": "Wiki", "url": "https://wiki.example.org/"}],
        cert_manager_values={"webhook": {"replicaCount": 2}},
    )


def find(objects: list[Any], kind: str, name: str) -> Any:
    """The one object of that kind and name."""
    (found,) = (item for item in objects if (item["kind"], item["metadata"]["name"]) == (kind, name))
    return found


def test_an_authority_of_the_sites_own(usual: Rendered) -> None:
    made = usual
    assert [item["kind"] for item in made["issuers"]] == ["Issuer", "Certificate", "ClusterIssuer"]
    authority = find(made["issuers"], "Certificate", "slipway-ca")["spec"]
    assert authority["isCA"] is True and authority["privateKey"]["rotationPolicy"] == "Never"
    assert find(made["issuers"], "ClusterIssuer", "slipway")["spec"] == {"ca": {"secretName": "slipway-ca"}}
    assert {flow["name"] for flow in made["cert_manager_flows"]} == {"webhook", "api", "dns"}
    assert {flow["name"] for flow in made["flows"]} == {"visitors", "dns", "health-git", "health-argocd"}
    certificate = find(made["certificate"], "Certificate", "front-door")["spec"]
    assert certificate["dnsNames"] == ["ml.example.org", "*.ml.example.org"]
    store = find(made["certificate"], "TLSStore", "default")["spec"]["defaultCertificate"]
    assert store["secretName"] == certificate["secretName"]
    data = find(made["objects"], "ConfigMap", "start-page")["data"]
    assert data["ca.crt"] == "PEM\n"
    page = json.loads(data["page.json"])
    assert [item["name"] for item in page["components"]] == ["cert-manager", "git", "argocd", "wiki"]
    template = find(made["objects"], "Deployment", "start-page")["spec"]["template"]
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    assert template["metadata"]["annotations"] == {"slipway/content": digest}
    pod = template["spec"]
    assert pod["automountServiceAccountToken"] is False and pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["image"] == IMAGES["services"]
    assert pod["containers"][0]["ports"] == [{"name": "http", "containerPort": 8080}]


def test_the_redirect_leaves_out_what_plain_http_is_for(usual: Rendered) -> None:
    (route,) = find(usual["objects"], "IngressRoute", "https")["spec"]["routes"]
    assert "HostRegexp(`^[^.]+\\.ml\\.example\\.org$`)" in route["match"]
    assert "!PathPrefix(`/.well-known/acme-challenge/`)" in route["match"]
    assert "!(Host(`ml.example.org`) && Path(`/ca.crt`))" in route["match"]


def test_acme(render: Callable[..., Rendered]) -> None:
    """No wildcard, no authority to vouch for, and the flows that the proof of a name needs."""
    solver = {"cert_manager_acmesolver": "quay.io/jetstack/cert-manager-acmesolver:v1.21.2"}
    made = render(
        cert_manager_issuer="acme",
        cert_manager_acme_email="ops@example.org",
        slipway_bundle={"images": {**IMAGES, **solver}, "versions": {}, "artifacts": []},
    )
    (issuer,) = made["issuers"]
    acme = issuer["spec"]["acme"]
    assert acme["email"] == "ops@example.org" and acme["server"].startswith("https://acme-v02.api.letsencrypt.org/")
    assert acme["solvers"] == [{"http01": {"ingress": {"ingressClassName": "traefik"}}}]
    names = find(made["certificate"], "Certificate", "front-door")["spec"]["dnsNames"]
    assert names == ["ml.example.org", "argocd.ml.example.org", "git.ml.example.org"]
    assert "ca.crt" not in find(made["objects"], "ConfigMap", "start-page")["data"]
    assert {"acme", "acme-look", "acme-look-inside"} < {flow["name"] for flow in made["cert_manager_flows"]}
    assert "acme" in {flow["name"] for flow in made["flows"]}
    assert made["values"]["acmesolver"]["image"]["tag"] == "v1.21.2"


def test_given_files(render: Callable[..., Rendered]) -> None:
    """They get Secrets of their own, and cert-manager makes nothing in their place."""
    pair = {"certificate": "/x.crt", "key": "/x.key"}
    made = render(cert_manager_ca=pair, front_door_tls="given", front_door_certificate=pair)
    assert [item["kind"] for item in made["issuers"]] == ["ClusterIssuer"]
    assert made["issuers"][0]["spec"]["ca"]["secretName"] == made["secret"] == "slipway-given-ca"
    (store,) = made["certificate"]
    assert store["spec"]["defaultCertificate"]["secretName"] == "front-door-given"


def test_who_asks_people_can_be_replaced(usual: Rendered, render: Callable[..., Rendered]) -> None:
    """Everybody's Ingress names the same Middleware; what it does is the site's choice."""
    ours = find(usual["objects"], "Middleware", "auth")["spec"]
    assert ours["basicAuth"]["secret"] == "front-door-user" and ours["basicAuth"]["removeHeader"] is True
    theirs = find(render(front_door_auth_middleware="oidc")["objects"], "Middleware", "auth")["spec"]
    assert theirs == {"chain": {"middlewares": [{"name": "oidc"}]}}


def test_the_start_pages_program_takes_the_configuration(usual: Rendered, tmp_path: Path) -> None:
    data = find(usual["objects"], "ConfigMap", "start-page")["data"]
    (tmp_path / "page.json").write_text(data["page.json"])
    load = "import sys, pathlib; sys.path.insert(0, 'services'); import start_page; start_page.Page.load(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", load, str(tmp_path / "page.json")], cwd=PROJECT, check=True)


def keys(values: Any, prefix: str = "") -> list[str]:
    """The dotted paths of a mapping's leaves."""
    if not isinstance(values, dict) or not values:
        return [prefix.rstrip(".")]
    return [path for key, value in values.items() for path in keys(value, f"{prefix}{key}.")]


def test_the_chart_has_every_key(usual: Rendered) -> None:
    """And lets the user's values win. The chart has a schema as well, which Helm holds the values against."""
    made = usual
    assert made["values"]["webhook"]["replicaCount"] == 2
    assert made["values"]["crds"] == {"enabled": True, "keep": True}
    charts = sorted((Path.home() / ".cache/slipway/chart").glob("cert-manager-*/cert-manager-*.tgz"))
    if not charts:
        pytest.skip("no chart on this machine: make bundle brings one")
    text = subprocess.run(
        ["tar", "-xOf", str(charts[-1]), "cert-manager/values.yaml"], capture_output=True, text=True, check=True
    ).stdout
    chart = yaml.safe_load(text)
    # The chart leaves these to Kubernetes.
    open_ended = ("resources.", "image.tag")
    missing = []
    for path in keys(made["values"]):
        if any(word in path for word in open_ended):
            continue
        found: Any = chart
        for key in path.split("."):
            if not isinstance(found, dict) or key not in found:
                missing.append(path)
                break
            found = found[key]
    assert missing == []
