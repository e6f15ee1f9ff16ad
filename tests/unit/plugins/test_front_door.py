"""The front door's settings are judged before anything is made; links become flows, names and the page's configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.slipway import front_door
from ansible.module_utils.slipway.kube import Json

from filter import front_door as filters
from modules import front_door_check

from .authorities import make, write
from .fakes import FakeKube, run_module

CLASS = "/apis/networking.k8s.io/v1/ingressclasses/traefik"
STORES = f"{front_door.TRAEFIK}/tlsstores"


def cluster() -> FakeKube:
    return FakeKube({CLASS: {"metadata": {}}, front_door.TRAEFIK: {"resources": []}})


@pytest.fixture
def kube(monkeypatch: pytest.MonkeyPatch) -> FakeKube:
    fake = cluster()
    monkeypatch.setattr(front_door_check, "KubeClient", lambda *_: fake)
    return fake


def check(**options: Any) -> str:
    """What the module says; empty where it has nothing against it."""
    result = run_module(front_door_check, {"kubeconfig": "/k", "domain": "lab.internal", "timeout": 0, **options})
    return str(result["msg"]) if result.get("failed") else ""


def test_nothing_is_wrong(kube: FakeKube) -> None:
    assert check() == ""
    kube.objects[STORES] = {"items": [{"metadata": {"namespace": "front-door", "name": "default"}}]}
    assert check(links=[{"name": "wiki", "url": "https://wiki.example.org/team"}]) == ""


@pytest.mark.parametrize(
    ("domain", "reason"),
    [
        ("lab_1.internal", "'lab_1' is no DNS label"),
        ("Lab.internal", "'Lab' is no DNS label"),
        ("lab..internal", "'' is no DNS label"),
        ("*.lab.internal", "'*' is no DNS label"),
        ("lab", "it needs a dot"),
        (".".join(["a" * 60] * 4) + ".abcd", "names below it would be longer than 253"),
        ("10.0.0.1", "is an address"),
    ],
)
def test_domains(domain: str, reason: str) -> None:
    assert reason in front_door.domain_problem(domain)
    assert front_door.domain_problem("ml-1.example.org") == ""


def test_links_of_users(kube: FakeKube) -> None:
    said = check(
        links=[
            {"name": "A b", "url": "javascript:alert(1)"},
            {"name": "c", "url": "https://"},
            {"name": "c", "health": {"url": "ftp://x/", "namespace": "n"}},
        ]
    )
    assert "front_door_links, A b: name: lower-case letters" in said
    assert "A b: url: 'javascript:alert(1)' is no http or https URL" in said
    assert "c: name: given twice" in said and "c: url: 'https://' is no" in said
    assert "c: health.url: 'ftp://x/'" in said and "c: health: url, namespace and port are needed" in said


def test_a_cluster_without_traefik(kube: FakeKube) -> None:
    del kube.objects[CLASS]
    assert "the cluster has no Traefik" in check()
    said = check(disabled=["traefik"])
    assert "k3s_disable has traefik" in said and "the cluster has" not in said


def test_traefik_that_comes_a_moment_later() -> None:
    class Late(FakeKube):
        looks = 0

        def get(self, path: str, **query: str) -> Json | None:
            self.looks += path == CLASS
            return None if self.looks < 2 else super().get(path)

    late = Late(cluster().objects)
    params = {"namespace": "front-door", "auth_middleware": ""}
    assert front_door_check.await_cluster(late, params, 5) == []
    assert late.looks == 2


def test_another_default_store_and_a_missing_middleware(kube: FakeKube) -> None:
    kube.objects[STORES] = {"items": [{"metadata": {"namespace": "kube-system", "name": "default"}}]}
    said = check(auth_middleware="oidc")
    assert "there is a TLSStore default in namespace kube-system" in said
    assert "no Middleware of that name in namespace front-door" in said
    kube.objects[STORES] = {"items": []}
    kube.objects[f"{front_door.TRAEFIK}/namespaces/front-door/middlewares/oidc"] = {"metadata": {}}
    assert check(auth_middleware="oidc") == ""


def test_a_given_certificate(kube: FakeKube, tmp_path: Path) -> None:
    certificate, key = write(tmp_path, "x", make("leaf", names=("lab.internal",)))
    options = {"certificate": certificate, "key": key}
    assert check(names=["lab.internal"], **options) == ""
    said = check(names=["lab.internal", "argocd.lab.internal"], **options)
    assert "front_door_certificate: " in said and "not for argocd.lab.internal" in said
    assert "No such file" in check(certificate="/none.crt", key="/none.key")


OWN: dict[str, Json] = {
    "argocd": {
        "title": "Argo CD",
        "url": "https://argocd.lab.internal/",
        "health": {"url": "http://argocd/healthz", "namespace": "argocd", "pods": {"a": "b"}, "port": 8080},
        "credentials": {"namespace": "argocd", "secret": "s", "key": "password"},
    },
    "git": {"title": "Git", "command": "git clone https://git.lab.internal/platform.git"},
    "gpu_operator": {"title": "GPU operator"},
}


def test_links_are_those_of_active_components_and_of_users() -> None:
    links = filters.merge_links(
        OWN, ["gpu_operator", "argocd", "unknown"], [{"name": "wiki"}, {"name": "argocd", "title": "Ours"}]
    )
    assert [link["name"] for link in links] == ["gpu-operator", "argocd", "wiki"]
    assert links[1] == {"name": "argocd", "title": "Ours"}


def test_hosts_are_those_below_the_domain() -> None:
    given = [{"name": "x", "url": "https://a.b.lab.internal/"}, {"name": "y", "url": "http://notlab.internal/"}]
    links = filters.merge_links(OWN, OWN, given)
    assert filters.hosts(links, "lab.internal") == ["lab.internal", "argocd.lab.internal", "git.lab.internal"]


def test_the_page_is_let_through_to_what_it_asks() -> None:
    given = [{"name": "own", "health": {"url": "http://x/", "namespace": "own", "port": "90"}}]
    assert filters.health_flows(filters.merge_links(OWN, OWN, given), {"app": "page"}) == [
        {
            "name": "health-argocd",
            "of": {"app": "page"},
            "to": [{"namespace": "argocd", "pods": {"a": "b"}}],
            "ports": [8080],
        },
        {"name": "health-own", "of": {"app": "page"}, "to": [{"namespace": "own"}], "ports": [90]},
    ]


def test_the_pages_configuration() -> None:
    page = filters.page_config(
        filters.merge_links(OWN, ["argocd"], [{"name": "x", "title": None}]),
        "lab",
        "d",
        "/p/.slipway/k",
        "/elsewhere/c",
        "/p",
    )
    assert page == {
        "site": "lab",
        "domain": "d",
        "kubeconfig": ".slipway/k",
        "ca": "/elsewhere/c",
        "components": [
            {
                "name": "argocd",
                "title": "Argo CD",
                "url": "https://argocd.lab.internal/",
                "credentials": {"namespace": "argocd", "secret": "s", "key": "password"},
                "health": "http://argocd/healthz",
            },
            {"name": "x", "title": "x"},
        ],
    }
