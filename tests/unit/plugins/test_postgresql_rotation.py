"""A consumer of PostgreSQL gets another login while its clients go on, whatever interrupts it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import pytest
from ansible.module_utils.slipway import secrets
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json
from ansible.module_utils.slipway.postgresql import GROUP, Consumer, login_of, matches, plan_logins, uri, verifier
from ansible.module_utils.slipway.postgresql_rotation import Holder, Rotation
from ansible.module_utils.slipway.postgresql_secrets import FORMER, former

from .fakes import Clock, FakeKube

PLACE = secrets.path("postgresql", "postgresql-airflow")
PODS = "/api/v1/namespaces/airflow/pods"
HOLDER = Holder("airflow", ("airflow",), cared_for=True)
MADE = "consumer airflow: second login made, Secret postgresql/postgresql-airflow has it"
LOCKED = "consumer airflow: former login locked"


class Cluster(FakeKube):
    """One with the consumer's Secret and a server that has what that says; `sessions` are (role, who)."""

    def __init__(self) -> None:
        super().__init__({PODS: {"items": []}})
        values = {"host": "h.x.svc", "port": "5432", "database": "airflow", "username": "airflow", "password": "first"}
        values |= {"uri": uri("h.x.svc", "5432", "airflow", "first"), "ca.crt": "CA"}
        keys = [secrets.Key(key, value=value) for key, value in values.items()]
        secrets.ensure(self, "postgresql", "postgresql-airflow", keys, {})
        self.roles: dict[str, Json] = {
            GROUP: {"password": None, "plain": False},
            "airflow": {"password": verifier("first"), "plain": True, "acts_as": None},
        }
        self.sessions: list[tuple[str, str]] = []
        self.said: list[str] = []
        self.lost = ""

    def sql(self, text: str) -> str:
        """Knows the statements that are used here."""
        self.said.append(text)
        if "json_build_object" in text:
            return json.dumps({"roles": self.roles, "members": ["airflow"], "databases": {}})
        if "pg_stat_activity" in text:
            return json.dumps(self.sessions)
        for line in text.splitlines():
            words = line.replace('"', "").replace("'", "").rstrip(";").split()
            if self.lost and line.startswith(self.lost):
                raise KeyboardInterrupt
            if words[0] == "SET":
                continue
            name = words[3] if words[0] == "GRANT" else words[2]
            role = self.roles.setdefault(name.rstrip(";"), {"password": None, "plain": True, "acts_as": None})
            if words[0] == "GRANT":
                role["acts_as"] = words[1]
            elif words[-2] == "PASSWORD":
                role["password"] = None if words[-1] == "NULL" else words[-1]
        return ""

    @property
    def values(self) -> dict[str, str]:
        return {key: base64.b64decode(value).decode() for key, value in self.objects[PLACE]["data"].items()}

    def accepts(self, values: Mapping[str, str]) -> bool:
        return matches(values["password"], self.roles.get(values["username"], {}).get("password"))

    def rotation(self, check: bool = False) -> Rotation:
        return Rotation(
            self, self.sql, "postgresql", lambda values: [] if self.accepts(values) else ["it is refused"], check
        )

    def due(self) -> list[str]:
        """What an installation would change."""
        values = self.values
        state = json.loads(self.sql("json_build_object"))
        login = login_of("airflow", values["username"])
        consumer = Consumer("airflow", values["password"], login, bool(former(self.objects[PLACE])))
        return [change.text for change in plan_logins(state, consumer)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for name, value in (("monotonic", clock), ("sleep", clock.sleep)):
        monkeypatch.setattr(f"ansible.module_utils.slipway.postgresql_rotation.time.{name}", value)
    return clock


@pytest.fixture
def cluster(clock: Clock) -> Cluster:
    return Cluster()


def test_both_logins_are_good_until_nobody_uses_the_former_one(cluster: Cluster) -> None:
    for before, after in (("airflow", "airflow.2"), ("airflow.2", "airflow"), ("airflow", "airflow.2")):
        old, rotating = cluster.values, cluster.rotation()
        assert old["username"] == before
        rotating.begin("airflow")
        new = cluster.values
        assert (new["username"], new["database"], len(new["password"])) == (after, "airflow", 40)
        assert new["uri"] == uri("h.x.svc", "5432", "airflow", new["password"], after)
        assert cluster.accepts(old) and cluster.accepts(new)
        # An installation in the middle of it leaves both.
        assert cluster.due() == []
        rotating.end(HOLDER, 1)
        assert cluster.accepts(new) and not cluster.accepts(old)
        assert rotating.changes == [MADE, LOCKED]
        assert cluster.due() == []
        assert FORMER not in cluster.objects[PLACE]["metadata"]["annotations"]
        assert rotating.passwords == {new["password"]}
        assert new["password"] not in "".join(cluster.said) + repr(rotating)


def test_who_may_use_the_former_one_is_awaited(cluster: Cluster) -> None:
    old = cluster.values
    cluster.rotation().begin("airflow")
    pod: Json = {"metadata": {"name": "scheduler", "deletionTimestamp": "2026-11-26T12:00:00Z"}}
    reasons: list[tuple[list[tuple[str, str]], list[Json], Holder, str]] = [
        ([("airflow", "app at 10.0.0.1"), ("airflow.2", "x")], [], HOLDER, "the former login airflow is still used by app at 10.0.0.1"),
        ([], [pod], HOLDER, "pods that may have the former login airflow have not ended: airflow/scheduler"),
        ([], [], Holder("airflow", ("airflow",)), "nobody uses the new login airflow.2 yet"),
    ]  # fmt: skip
    for sessions, pods, holder, reason in reasons:
        cluster.sessions, cluster.objects[PODS] = sessions, {"items": pods}
        with pytest.raises(SlipwayError) as error:
            cluster.rotation().end(holder, 5)
        assert str(error.value) == (
            f"consumer airflow: {reason}, after 5 s. Both logins are let in, nothing is broken. Have it use what "
            "Secret postgresql/postgresql-airflow says now, then run this again"
        )
        assert cluster.accepts(old) and cluster.accepts(cluster.values)
    cluster.sessions = [("airflow.2", "app at 10.0.0.2")]
    again = cluster.rotation()
    again.begin("airflow")
    again.end(Holder("airflow", ("airflow",)), 5)
    assert again.changes == [LOCKED]
    assert not cluster.accepts(old)


@pytest.mark.parametrize("lost", ["CREATE ROLE", "GRANT"])
def test_an_interruption_before_the_secret_costs_nothing(cluster: Cluster, lost: str) -> None:
    old = cluster.values
    cluster.lost = lost
    with pytest.raises(KeyboardInterrupt):
        cluster.rotation().begin("airflow")
    assert cluster.values == old and cluster.accepts(old)
    cluster.lost = ""
    rotating = cluster.rotation()
    rotating.begin("airflow")
    rotating.end(HOLDER, 1)
    assert cluster.accepts(cluster.values) and cluster.due() == []


def test_a_login_that_is_not_let_in_is_not_handed_out(cluster: Cluster) -> None:
    """As by rules of an older installation."""
    old = cluster.values
    rotating: Any = cluster.rotation()
    rotating.faults = lambda _: ["h.x.svc:5432, user airflow.2: no pg_hba.conf entry"]
    with pytest.raises(
        SlipwayError, match=r"second login of airflow: h\.x\.svc.*The first one is in use.*Run site\.yml"
    ):
        rotating.begin("airflow")
    assert cluster.values == old and cluster.accepts(old)
    # What it has left behind is taken away.
    assert cluster.due() == ["role airflow.2: former password removed"]


def test_check_mode_only_says_it(cluster: Cluster) -> None:
    before = json.dumps([cluster.objects, cluster.roles])
    checked = cluster.rotation(check=True)
    checked.begin("airflow")
    checked.end(HOLDER, 1)
    assert checked.changes == [MADE]
    assert json.dumps([cluster.objects, cluster.roles]) == before


def test_what_is_not_installed_is_named(cluster: Cluster) -> None:
    cluster.roles["airflow"]["password"] = verifier("another")
    with pytest.raises(SlipwayError, match=r"does not say what PostgreSQL has; run site\.yml first"):
        cluster.rotation().begin("airflow")
    with pytest.raises(SlipwayError, match=r"there is no Secret postgresql/postgresql-other; run site\.yml first"):
        cluster.rotation().begin("other")
