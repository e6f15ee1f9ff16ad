"""Secrets are made once, completed afterwards, and never shown."""

from __future__ import annotations

import base64

import pytest
from ansible.module_utils.slipway import secrets
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, KubeError
from ansible.module_utils.slipway.secrets import Key, ensure

from .fakes import FakeKube

PATH = secrets.path("minio", "root")
KEYS = [Key("user", value="slipway"), Key("password", length=40)]


def values(kube: FakeKube) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in kube.objects[PATH]["data"].items()}


def test_made_with_all_keys_then_left_alone() -> None:
    kube = FakeKube()
    outcome = ensure(kube, "minio", "root", KEYS, {"app": "x"})
    assert (outcome.changed, outcome.existing, outcome.added) == (True, [], ["password", "user"])
    first = values(kube)
    assert first["user"] == "slipway"
    assert len(first["password"]) == 40
    again = ensure(kube, "minio", "root", KEYS, {"app": "x"})
    assert (again.changed, again.existing, again.added) == (False, ["password", "user"], [])
    assert values(kube) == first
    assert kube.writes == [PATH]


def test_only_missing_keys_are_added() -> None:
    kube = FakeKube()
    ensure(kube, "minio", "root", [Key("user", value="old")], {})
    outcome = ensure(kube, "minio", "root", KEYS, {})
    assert outcome.added == ["password"]
    assert values(kube)["user"] == "old"


def test_labels_are_completed_and_others_kept() -> None:
    kube = FakeKube()
    ensure(kube, "minio", "root", KEYS, {"a": "1"})
    outcome = ensure(kube, "minio", "root", KEYS, {"b": "2"})
    assert (outcome.changed, outcome.labels) == (True, ["b"])
    assert kube.objects[PATH]["metadata"]["labels"] == {"a": "1", "b": "2"}


def test_check_mode_predicts_and_writes_nothing() -> None:
    kube = FakeKube()
    outcome = ensure(kube, "minio", "root", KEYS, {}, check=True)
    assert outcome.added == ["password", "user"]
    assert not kube.writes


def test_a_secret_made_meanwhile_is_completed_not_replaced() -> None:
    class Raced(FakeKube):
        def create(self, path: str, body: Json) -> Json:
            if PATH not in self.objects:
                super().create(path, {**body, "stringData": {"password": "theirs"}})
            return super().create(path, body)

    kube = Raced()
    outcome = ensure(kube, "minio", "root", KEYS, {})
    assert outcome.added == ["user"]
    assert values(kube) == {"user": "slipway", "password": "theirs"}


def test_a_key_added_meanwhile_wins() -> None:
    class Raced(FakeKube):
        raced = False

        def merge_patch(self, path: str, body: Json) -> Json:
            if not self.raced:
                self.raced = True
                version = self.objects[PATH]["metadata"]["resourceVersion"]
                super().merge_patch(
                    path, {"metadata": {"resourceVersion": version}, "stringData": {"password": "theirs"}}
                )
            return super().merge_patch(path, body)

    kube = Raced()
    ensure(kube, "minio", "root", [Key("user", value="slipway")], {})
    outcome = ensure(kube, "minio", "root", KEYS, {})
    assert outcome.changed is False
    assert values(kube)["password"] == "theirs"


def test_endless_conflicts_and_other_refusals_are_errors() -> None:
    class Busy(FakeKube):
        status = 409

        def create(self, path: str, body: Json) -> Json:
            raise KubeError("POST: no", self.status)

    kube = Busy()
    with pytest.raises(SlipwayError, match="minio/root kept changing"):
        ensure(kube, "minio", "root", KEYS, {})
    kube.status = 403
    with pytest.raises(KubeError, match="POST: no"):
        ensure(kube, "minio", "root", KEYS, {})


@pytest.mark.parametrize("alphabet", sorted(secrets.ALPHABETS))
def test_random_values_use_their_alphabet_and_differ(alphabet: str) -> None:
    key = Key("k", length=64, alphabet=alphabet)
    first, second = key.make(), key.make()
    assert set(first) <= set(secrets.ALPHABETS[alphabet])
    assert first != second


def test_values_are_in_no_representation() -> None:
    assert "hunter" not in repr(Key("k", value="hunter"))


def test_read_names_the_missing_key() -> None:
    kube = FakeKube()
    ensure(kube, "minio", "root", KEYS, {})
    assert secrets.read(kube, "minio", "other", ["user"]) is None
    assert secrets.read(kube, "minio", "root", ["user"]) == {"user": "slipway"}
    with pytest.raises(SlipwayError, match="minio/root has no token"):
        secrets.read(kube, "minio", "root", ["token"])


def test_the_fingerprint_follows_the_values() -> None:
    kube = FakeKube()
    assert ensure(kube, "minio", "root", KEYS, {}, check=True).fingerprint == ""
    first = ensure(kube, "minio", "root", KEYS, {}).fingerprint
    assert first and ensure(kube, "minio", "root", KEYS, {}).fingerprint == first
    assert ensure(kube, "minio", "root", [KEYS[0]], {}).fingerprint != first
    del kube.objects[PATH]["data"]["password"]
    assert ensure(kube, "minio", "root", KEYS, {}).fingerprint != first
