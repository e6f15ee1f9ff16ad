"""Secrets follow others, are written only where they differ, and are never shown."""

from __future__ import annotations

import base64
import dataclasses
import json

import pytest
from ansible.module_utils.slipway import secrets
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, KubeError
from ansible.module_utils.slipway.mirror import Mirror, mirror

from modules import secret_mirror

from .fakes import FakeKube, run_module

SOURCE, OWN = secrets.path("git", "users"), secrets.path("argocd", "repo")
WANTED = Mirror("argocd", "repo", "git", "users", {"password": "argocd.read"}, {"url": "http://git"}, {"a": "1"})


def encoded(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def secret(**data: str) -> Json:
    return {"metadata": {"resourceVersion": "1"}, "data": {key: encoded(value) for key, value in data.items()}}


def cluster(own: Json | None = None, value: str = "hunter2") -> FakeKube:
    source = secret()
    source["data"]["argocd.read"] = encoded(value)
    return FakeKube({SOURCE: source, **({OWN: own} if own else {})})


def values(kube: FakeKube) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in kube.objects[OWN]["data"].items()}


def test_made_then_left_alone() -> None:
    kube = cluster()
    outcome = mirror(kube, WANTED)
    assert (outcome.created, outcome.set, outcome.labels) == (True, ["password", "url"], ["a"])
    assert values(kube) == {"password": "hunter2", "url": "http://git"}
    assert kube.objects[OWN]["metadata"]["labels"] == {"a": "1"}
    assert not mirror(kube, WANTED).changed
    assert kube.writes == [OWN]


def test_follows_a_new_value_and_leaves_other_keys() -> None:
    kube = cluster(secret(password="old", url="http://git", theirs="x"))
    outcome = mirror(kube, dataclasses.replace(WANTED, labels={}))
    assert (outcome.set, outcome.removed, outcome.created) == (["password"], [], False)
    assert values(kube) == {"password": "hunter2", "url": "http://git", "theirs": "x"}


def test_an_exclusive_one_loses_other_keys() -> None:
    kube = cluster(secret(password="hunter2", url="http://git", sshPrivateKey="old"))
    outcome = mirror(kube, dataclasses.replace(WANTED, labels={}, exclusive=True))
    assert (outcome.set, outcome.removed) == ([], ["sshPrivateKey"])
    assert values(kube) == {"password": "hunter2", "url": "http://git"}


def test_the_fingerprint_changes_with_the_values_taken_over_only() -> None:
    first = mirror(cluster(), WANTED).fingerprint
    assert mirror(cluster(), dataclasses.replace(WANTED, values={"url": "x"})).fingerprint == first
    assert mirror(cluster(value="other"), WANTED).fingerprint != first


def test_check_mode_predicts_and_writes_nothing() -> None:
    kube = cluster()
    outcome = mirror(kube, WANTED, check=True)
    assert (outcome.changed, outcome.set) == (True, ["password", "url"])
    assert not kube.writes
    assert mirror(FakeKube(), WANTED, check=True).changed


def test_what_the_source_lacks_is_named() -> None:
    with pytest.raises(SlipwayError, match=r"git/users does not exist; Secret argocd/repo"):
        mirror(FakeKube(), WANTED)
    with pytest.raises(SlipwayError, match=r"git/users has no argocd.read; Secret argocd/repo"):
        mirror(FakeKube({SOURCE: secret(other="x")}), WANTED)


def test_a_secret_changed_meanwhile_is_read_again() -> None:
    class Raced(FakeKube):
        raced = False

        def merge_patch(self, path: str, body: Json) -> Json:
            if not self.raced:
                self.raced = True
                self.objects[OWN] = secret(theirs="x")
                self.objects[OWN]["metadata"]["resourceVersion"] = "7"
            return super().merge_patch(path, body)

    kube = Raced(cluster(secret(theirs="old")).objects)
    mirror(kube, WANTED)
    assert values(kube) == {"password": "hunter2", "url": "http://git", "theirs": "x"}


def test_endless_conflicts_and_other_refusals_are_errors() -> None:
    class Busy(FakeKube):
        status = 409

        def create(self, path: str, body: Json) -> Json:
            raise KubeError("POST: no", self.status)

    kube = Busy(cluster().objects)
    with pytest.raises(SlipwayError, match="argocd/repo kept changing"):
        mirror(kube, WANTED)
    kube.status = 403
    with pytest.raises(KubeError, match="POST: no"):
        mirror(kube, WANTED)


def test_no_value_is_in_the_outcome() -> None:
    outcome = mirror(cluster(), WANTED)
    text = json.dumps(dataclasses.asdict(outcome)) + repr(outcome)
    assert "hunter2" not in text
    assert encoded("hunter2") not in text


def test_the_module_prints_names_only(monkeypatch: pytest.MonkeyPatch) -> None:
    kube = cluster()
    monkeypatch.setattr(secret_mirror, "KubeClient", lambda *_: kube)
    options: Json = {
        "kubeconfig": "/k",
        "namespace": "argocd",
        "name": "repo",
        "source": {"namespace": "git", "name": "users"},
        "keys": {"password": "argocd.read"},
    }
    result = run_module(secret_mirror, options)
    assert (result["changed"], result["set"]) == (True, ["password"])
    assert "hunter2" not in json.dumps(result)
    assert run_module(secret_mirror, options)["changed"] is False
    failed = run_module(secret_mirror, {**options, "keys": {"password": "other"}})
    assert failed["msg"] == "Secret git/users has no other; Secret argocd/repo needs it"
