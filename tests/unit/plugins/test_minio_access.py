"""MinIO tenants: bad lists are refused whole, good ones are applied once and repaired later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.minio_access import (
    Expiry,
    Login,
    Nothing,
    Tenant,
    User,
    bucket_fault,
    check_or_raise,
    foreign_buckets,
    login_problems,
    plan,
    policy_document,
    problems,
)

EPOS = Tenant("epos", ("datasets", "models"), "pipelines", "minio-epos")
LOGIN = Login("epos", "correct-horse")
ROOT = Login("root", "battery-staple")


class FakeMinio:
    """A `Store` in memory that gives policies back in another order, as MinIO does."""

    def __init__(self) -> None:
        self.buckets: set[str] = set()
        self.policies: dict[str, dict[str, Any]] = {}
        self.users: dict[str, User] = {}
        self.keys: dict[str, str] = {}
        self.expiries: dict[str, frozenset[Expiry]] = {}
        self.versioned: set[str] = set()
        self.quotas: dict[str, int] = {}

    def has_bucket(self, bucket: str) -> bool:
        return bucket in self.buckets

    def policy(self, name: str) -> Mapping[str, Any] | None:
        return self.policies.get(name)

    def user(self, access_key: str) -> User | None:
        return self.users.get(access_key)

    def accepts(self, login: Login) -> bool:
        return self.keys.get(login.access_key) == login.secret_key

    def expiry(self, bucket: str) -> frozenset[Expiry]:
        return self.expiries.get(bucket, frozenset())

    def is_versioned(self, bucket: str) -> bool:
        return bucket in self.versioned

    def quota(self, bucket: str) -> int:
        return self.quotas.get(bucket, 0)

    def keep_versions(self, bucket: str) -> None:
        assert bucket in self.buckets
        self.versioned.add(bucket)

    def set_quota(self, bucket: str, size: int) -> None:
        assert bucket in self.buckets
        self.quotas[bucket] = size

    def remove_user(self, access_key: str) -> None:
        del self.users[access_key]
        self.keys.pop(access_key, None)

    def make_bucket(self, bucket: str) -> None:
        self.buckets.add(bucket)

    def set_expiry(self, bucket: str, wanted: frozenset[Expiry]) -> None:
        self.expiries[bucket] = wanted

    def set_policy(self, name: str, document: Mapping[str, Any]) -> None:
        stored = json.loads(json.dumps(document))
        for statement in stored["Statement"]:
            statement["Action"].reverse()
            statement["Resource"].reverse()
        stored["Statement"].reverse()
        self.policies[name] = stored

    def set_user(self, login: Login) -> None:
        old = self.users.get(login.access_key, User(frozenset(), True))
        self.users[login.access_key] = replace(old, enabled=True)
        self.keys[login.access_key] = login.secret_key

    def attach(self, access_key: str, policy: str) -> None:
        self.users[access_key] = replace(self.users[access_key], policies=frozenset({policy}))


def apply(store: FakeMinio, *tenants: Tenant, logins: Mapping[str, Login] | None = None) -> list[str]:
    changes = plan(store, tenants, logins or {"epos": LOGIN})
    for change in changes:
        change.do(store)
    return [change.text for change in changes]


@pytest.fixture
def installed() -> FakeMinio:
    store = FakeMinio()
    apply(store, EPOS)
    return store


def test_everything_is_made_once() -> None:
    store = FakeMinio()
    assert apply(store, EPOS) == [
        "policy epos made",
        "bucket datasets made",
        "bucket models made",
        "user of tenant epos made",
        "user of tenant epos: policy attached",
    ]
    assert store.users["epos"] == User(frozenset({"epos"}), True)
    assert apply(store, EPOS) == []


def test_the_plan_alone_changes_nothing() -> None:
    store = FakeMinio()
    assert len(plan(store, [EPOS], {"epos": LOGIN})) == len(plan(Nothing(), [EPOS], {})) == 5
    assert not store.buckets


def test_another_secret_key_is_set_again(installed: FakeMinio) -> None:
    installed.keys["epos"] = "changed by hand"
    assert apply(installed, EPOS) == ["user of tenant epos: secret key set"]
    assert installed.accepts(LOGIN)


def test_a_disabled_user_is_enabled(installed: FakeMinio) -> None:
    installed.users["epos"] = replace(installed.users["epos"], enabled=False)
    assert apply(installed, EPOS) == ["user of tenant epos enabled"]


def test_more_rights_than_wanted_are_taken_away(installed: FakeMinio) -> None:
    installed.users["epos"] = User(frozenset({"epos", "consoleAdmin"}), True)
    assert apply(installed, EPOS) == ["user of tenant epos: policy attached"]
    assert installed.users["epos"].policies == {"epos"}


def test_a_changed_policy_is_put_right(installed: FakeMinio) -> None:
    installed.policies["epos"]["Statement"][0]["Action"].append("s3:*")
    assert apply(installed, EPOS) == ["policy epos updated"]


def test_a_further_bucket_extends_the_policy(installed: FakeMinio) -> None:
    assert apply(installed, replace(EPOS, buckets=("datasets", "models", "runs"))) == [
        "policy epos updated",
        "bucket runs made",
    ]


def test_the_policy_names_only_own_buckets_and_no_wildcard_actions() -> None:
    document = policy_document(["datasets"])
    resources = [item for statement in document["Statement"] for item in statement["Resource"]]
    actions = [item for statement in document["Statement"] for item in statement["Action"]]
    assert resources == ["arn:aws:s3:::datasets", "arn:aws:s3:::datasets/*"]
    assert not [action for action in actions if "*" in action or "Policy" in action or "Admin" in action]


def test_others_buckets_are_read_and_nothing_more() -> None:
    store = FakeMinio()
    serving = Tenant("serving", (), "pipelines", "minio-serving", read=("models",))
    logins = {"epos": LOGIN, "serving": Login("serving", "another-horse")}
    assert problems([serving, EPOS]) == []
    assert [text for text in apply(store, EPOS, serving, logins=logins) if "serving" in text] == [
        "policy serving made",
        "user of tenant serving made",
        "user of tenant serving: policy attached",
    ]
    document = policy_document((), ("models",))
    actions = {item for statement in document["Statement"] for item in statement["Action"]}
    assert actions == {"s3:GetBucketLocation", "s3:ListBucket", "s3:GetObject"}
    assert not [item for statement in document["Statement"] for item in statement["Resource"] if "models" not in item]
    both = policy_document(("runs",), ("models",))
    writing = [item for item in both["Statement"] if "s3:PutObject" in item["Action"]]
    assert [item["Resource"] for item in writing] == [["arn:aws:s3:::runs/*"]]
    assert apply(store, EPOS, serving, logins=logins) == []


def test_what_expires_is_set_changed_and_taken_away() -> None:
    store = FakeMinio()
    rules = {"models": (Expiry("old/", 30),)}
    expiring = replace(EPOS, expire=rules)
    assert "bucket models: expiry set" in apply(store, expiring)
    assert store.expiries == {"models": frozenset({Expiry("old/", 30)})}
    assert apply(store, expiring) == []
    assert apply(store, replace(EPOS, expire={"models": (Expiry("old/", 60),)})) == ["bucket models: expiry set"]
    assert apply(store, EPOS) == ["bucket models: expiry set"]
    assert store.expiries == {"models": frozenset()}


def test_what_is_said_of_buckets_is_set_once() -> None:
    store = FakeMinio()
    kept = replace(EPOS, versioned=("models",), quota=(("models", "1.5Gi"), ("datasets", "10M")))
    kept = replace(kept, expire={"models": (Expiry("", 30), Expiry("", 7, replaced=True))})
    wanted = [
        "bucket datasets: quota 10M set",
        "bucket models: versions kept",
        "bucket models: expiry set",
        "bucket models: quota 1.5Gi set",
    ]
    assert [text for text in apply(store, kept) if ":" in text and "bucket" in text] == wanted
    assert store.quotas == {"models": 1610612736, "datasets": 10_000_000}
    assert apply(store, kept) == []
    assert apply(store, replace(kept, quota=(("models", "1536Mi"), ("datasets", "0")))) == [
        "bucket datasets: quota taken away"
    ]
    # What is not said of any more stays.
    assert apply(store, EPOS) == ["bucket models: expiry set"]
    assert store.is_versioned("models") and store.quota("models")


def test_a_bucket_of_nobody_is_refused_until_it_is_adopted(installed: FakeMinio) -> None:
    installed.buckets.add("shop")
    further = replace(EPOS, buckets=(*EPOS.buckets, "shop"))
    logins = {"epos": LOGIN}
    (fault,) = foreign_buckets(installed, [further], logins)
    assert fault == (
        "tenant 'epos': bucket 'shop' is in the store already and was nobody's of minio_tenants. Choose another name, or, if the tenant "
        "may have what is in it, add it to minio_adopt_buckets"
    )
    assert foreign_buckets(installed, [further], logins, ["shop"]) == []
    apply(installed, further)
    assert foreign_buckets(installed, [further], logins) == []
    # It moves from one tenant to another.
    mall = Tenant("mall", ("shop",), "n", "s")
    assert foreign_buckets(installed, [EPOS, mall], logins) == []


def test_what_was_interrupted_or_lost_is_nobody_elses(installed: FakeMinio) -> None:
    """The policy says whose buckets are, and where it was lost the user does."""
    del installed.policies["epos"]
    assert foreign_buckets(installed, [EPOS], {"epos": LOGIN}) == []
    store = FakeMinio()
    for change in plan(store, [EPOS], {"epos": LOGIN})[:2]:
        change.do(store)
    assert store.buckets == {"datasets"}
    assert foreign_buckets(store, [EPOS], {"epos": LOGIN}) == []


def test_a_former_key_goes_unless_it_is_still_needed(installed: FakeMinio) -> None:
    """It stays behind where the Secret was deleted after a rotation."""
    installed.set_user(Login("epos.2", "former-horse"))
    installed.attach("epos.2", "epos")
    assert plan(installed, [EPOS], {"epos": LOGIN}, {"epos"}) == []
    assert apply(installed, EPOS) == ["user of tenant epos: former key removed"]
    assert set(installed.users) == {"epos"}
    installed.users["epos.2"] = User(frozenset({"another"}), True)
    assert apply(installed, EPOS) == []


@pytest.mark.parametrize(
    ("tenant", "fault"),
    [
        (Tenant("a", (), "n", "s", read=("none",)), "'a': read: bucket 'none' belongs to no tenant"),
        (Tenant("a", (), "n", "s", read=("modles",)), "bucket 'modles' belongs to no tenant; did you mean models?"),
        (Tenant("a", ("own",), "n", "s", read=("own",)), "'a': read: bucket 'own' is its own"),
        (Tenant("a", ("own",), "n", "s", expire={"models": (Expiry("", 1),)}), "bucket 'models' is not its own"),
        (Tenant("a", ("own",), "n", "s", expire={"own": (Expiry("", 0),)}), "days is 0, not at least 1"),
        (Tenant("a", ("own",), "n", "s", expire={"own": (Expiry("/x", 1),)}), "begins with a slash"),
        (Tenant("a", ("own",), "n", "s", expire={"own": (Expiry("x", 1), Expiry("x", 2))}), "'x' is given twice"),
        (Tenant("a", ("own",), "n", "s", versioned=("onw",)), "'a': versioned: bucket 'onw' is not its own"),
        (
            Tenant("a", ("own",), "n", "s", expire={"own": (Expiry("", 1, replaced=True),)}),
            "'a': expire_versions: bucket 'own' keeps no versions: list it under versioned, too",
        ),
        (Tenant("a", ("own",), "n", "s", quota=(("models", "1Gi"),)), "'a': quota: bucket 'models' is not its own"),
        (Tenant("a", ("own",), "n", "s", quota=(("own", "1G"), ("own", "2G"))), "quota: bucket 'own' is given twice"),
        (
            Tenant("a", ("own",), "n", "s", quota=(("own", "10GB"),)),
            "'a': quota: bucket 'own': '10GB' is not a Kubernetes quantity",
        ),
        (Tenant("a", ("own",), "n", "s", quota=(("own", "500m"),)), "'500m' is no whole number of bytes"),
    ],
)
def test_faults_of_reading_and_expiry(tenant: Tenant, fault: str) -> None:
    assert fault in "; ".join(problems([EPOS, tenant]))


@pytest.mark.parametrize("name", ["abc", "a-b.c", "123", "x" * 63])
def test_good_bucket_names(name: str) -> None:
    assert bucket_fault(name) == ""


@pytest.mark.parametrize(
    "name", ["ab", "x" * 64, "Data", "a_b", "-ab", "ab-", "a..b", "a.-b", "192.168.0.1", "a/b", ""]
)
def test_bad_bucket_names(name: str) -> None:
    assert bucket_fault(name)


def test_all_faults_of_a_list_are_reported_together() -> None:
    faults = problems(
        [
            EPOS,
            Tenant("other", ("models", "Bad"), "n", "s"),
            Tenant("Upper", (), "n", "s"),
            Tenant("epos", ("x1y",), "n", "t"),
        ]
    )
    assert len(faults) == 6
    with pytest.raises(SlipwayError) as error:
        check_or_raise(faults)
    for part in (
        "'models' belongs to tenant 'epos' already",
        "'Bad'",
        "'Upper' has no bucket",
        "'epos' is listed twice",
        "'Upper': Secret n/s has the credentials of tenant 'other' already",
    ):
        assert part in str(error.value)
    check_or_raise([])


def test_bad_credentials_are_named_without_their_values() -> None:
    logins = {"a": Login("ab", "short"), "b": Login("root", "long enough 1"), "c": Login("root", "long enough 2")}
    text = "; ".join(login_problems(logins, ROOT))
    assert "'a': accessKey needs at least 3" in text
    assert "'a': secretKey needs at least 8" in text
    assert "'b': accessKey is the same as that of MinIO's root user" in text
    assert "'c': accessKey is the same" in text
    assert "short" not in text
    assert "battery" not in repr(ROOT)
