"""Databases and roles of PostgreSQL's consumers, and where these find how to connect."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ansible.module_utils.slipway import postgresql
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json
from ansible.module_utils.slipway.port_forward import service_of
from ansible.module_utils.slipway.postgresql import GROUP, Consumer, matches, plan, problems, uri, verifier
from ansible.module_utils.slipway.postgresql_external import secret_faults
from ansible.module_utils.slipway.postgresql_secrets import FORMER, LABEL

import modules.postgresql_credentials
import modules.postgresql_databases
import modules.postgresql_external

from .fakes import FakeKube, run_module

# https://www.rfc-editor.org/rfc/rfc7677#section-3, as the server keeps that password.
SALT = "W22ZaJ0SNY7soEsUEjb6gQ=="
PENCIL = f"SCRAM-SHA-256$4096:{SALT}$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
SECRETS = "/api/v1/namespaces/postgresql/secrets"
AIRFLOW = Consumer("airflow", "pencil")


def encode(**values: str) -> dict[str, str]:
    return {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}


def secret(**values: str) -> Json:
    return {"metadata": {"resourceVersion": "1"}, "data": encode(**values)}


class Cluster(FakeKube):
    """A FakeKube that lists Secrets by label and removes them."""

    def get(self, path: str, **query: str) -> Json | None:
        if path == SECRETS:
            found = [item for key, item in self.objects.items() if LABEL in (item["metadata"].get("labels") or {})]
            return {"items": found}
        return super().get(path)

    def delete(self, path: str) -> None:
        del self.objects[path]


def test_a_verifier_is_that_of_the_standard() -> None:
    assert verifier("pencil", base64.b64decode(SALT)) == PENCIL
    assert matches("pencil", PENCIL)
    assert not matches("Pencil", PENCIL)
    for kept in (None, "", "md5abc"):
        assert not matches("pencil", kept)
    assert verifier("pencil") != verifier("pencil")


@pytest.mark.parametrize("password", ["", "ümlaut", "two\nlines"])
def test_passwords_that_clients_would_change_are_refused(password: str) -> None:
    with pytest.raises(SlipwayError, match="printable ASCII"):
        verifier(password)


def test_names() -> None:
    assert problems(["airflow", "model-registry"]) == []
    (line,) = problems(['x"; DROP'])
    assert "is no name" in line
    assert len(problems(["Airflow", "a_b", "1a", "-a", "a" * 41])) == 5
    assert len(problems(["postgres", "pg-x", "slipway-consumers", "template1"])) == 4
    assert problems(["a", "a"]) == ["'a' is listed twice"]


def test_a_uri_survives_strange_passwords() -> None:
    said = psycopg.conninfo.conninfo_to_dict(uri("h.x.svc", "5432", "model-registry", "a/b@c:d%?"))
    assert (said["user"], said["password"], said["dbname"], said["host"]) == (
        "model_registry", "a/b@c:d%?", "model_registry", "h.x.svc",
    )  # fmt: skip
    assert (said["sslmode"], said["sslrootcert"]) == ("verify-full", "/etc/slipway/postgresql/ca.crt")


def state(**changes: Any) -> Json:
    """A server that has what AIRFLOW needs."""
    found: Json = {
        "roles": {GROUP: {"password": None, "plain": False}, "airflow": {"password": PENCIL, "plain": True}},
        "members": ["airflow"],
        "databases": {"airflow": {"owner": "airflow", "open": False}},
    }
    return {**found, **changes}


@pytest.mark.parametrize(
    ("found", "due"),
    [
        (state(), []),
        (state(members=[]), ["role airflow let in"]),
        (state(databases={}), ["database airflow made", "database airflow closed to others"]),
        (state(databases={"airflow": {"owner": "x", "open": True}}), ["database airflow: owner set", "database airflow closed to others"]),
        (
            state(roles={GROUP: {}, "airflow": {"password": "md5", "plain": False}}),
            ["role airflow: attributes set", "role airflow: password set"],
        ),
        (
            state(members=["airflow", "old"]),
            ["role old locked out: it is no consumer any more; its database stays"],
        ),
        (
            postgresql.NOTHING,
            [f"role {GROUP} made", "role airflow made", "role airflow let in", "database airflow made", "database airflow closed to others"],
        ),
    ],
)  # fmt: skip
def test_only_what_differs_is_changed(found: Json, due: list[str]) -> None:
    changes = plan(found, [AIRFLOW])
    assert [change.text for change in changes] == due
    assert "pencil" not in "".join(change.sql for change in changes)


SECOND = Consumer("airflow", "pencil", "airflow.2")


@pytest.mark.parametrize(
    ("consumer", "first", "second", "due"),
    [
        (SECOND, PENCIL, None, ["role airflow: former password removed", "role airflow.2 made", "role airflow.2 acts as airflow"]),
        (SECOND, None, {"password": PENCIL, "plain": True, "acts_as": "airflow"}, []),
        (SECOND, None, {"password": PENCIL, "plain": False, "acts_as": None}, ["role airflow.2: attributes set", "role airflow.2 acts as airflow"]),
        (replace(SECOND, rotating=True), PENCIL, {"password": PENCIL, "plain": True, "acts_as": "airflow"}, []),
        (AIRFLOW, PENCIL, {"password": PENCIL, "plain": True, "acts_as": "airflow"}, ["role airflow.2: former password removed"]),
        (AIRFLOW, PENCIL, {"password": None, "plain": True, "acts_as": "airflow"}, []),
        (replace(AIRFLOW, rotating=True), PENCIL, {"password": PENCIL, "plain": True, "acts_as": "airflow"}, []),
    ],
)  # fmt: skip
def test_two_logins_take_turns(consumer: Consumer, first: str | None, second: Json | None, due: list[str]) -> None:
    """The one that the Secret does not name has no password, but while it is handed over."""
    roles = {GROUP: {}, "airflow": {"password": first, "plain": True}, **({"airflow.2": second} if second else {})}
    assert [change.text for change in plan(state(roles=roles), [consumer])] == due


def test_names_of_others_are_quoted() -> None:
    (change,) = plan(state(members=["airflow", 'it\'s "odd"']), [AIRFLOW])
    assert f'REVOKE "{GROUP}" FROM "it\'s ""odd"""' in change.sql
    assert "usename IN ('it''s \"odd\"', 'it''s \"odd\".2')" in change.sql


KUBECTL = """#!/bin/sh
echo "$@" >>{folder}/arguments
cat >{folder}/input
[ ! -e {folder}/fail ] || {{ cat {folder}/fail >&2; exit 3; }}
cat {folder}/output
"""


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster({f"{SECRETS}/postgresql-tls": secret(**{"ca.crt": "CA"})})
    for module in (modules.postgresql_credentials, modules.postgresql_databases, modules.postgresql_external):
        monkeypatch.setattr(module, "KubeClient", lambda _: made)
    return made


@pytest.fixture
def databases(cluster: Cluster, tmp_path: Path) -> Callable[..., Json]:
    """The module, with a kubectl that says what `output` holds."""
    (tmp_path / "kubectl").write_text(KUBECTL.format(folder=tmp_path))
    (tmp_path / "kubectl").chmod(0o755)
    (tmp_path / "output").write_text(json.dumps(state()))

    def run(check: bool = False, consumers: tuple[str, ...] = ("airflow",)) -> Json:
        arguments = {"kubeconfig": "/kc", "kubectl": str(tmp_path / "kubectl"), "consumers": list(consumers)}
        return run_module(modules.postgresql_databases, arguments, check)

    return run


def test_the_module_speaks_to_psql_in_the_pod(databases: Callable[..., Json], cluster: Cluster, tmp_path: Path) -> None:
    cluster.objects[f"{SECRETS}/postgresql-airflow"] = secret(password="pencil")
    cluster.objects["/api/v1/namespaces/postgresql/pods/postgresql-0"] = {}
    assert databases()["changed"] is False
    assert "SELECT json_build_object" in (tmp_path / "input").read_text()

    cluster.objects[f"{SECRETS}/postgresql-airflow"] = secret(password="a new one")
    check = databases(check=True)
    assert "ALTER" not in (tmp_path / "input").read_text()
    done = databases()
    assert check["changes"] == done["changes"] == ["role airflow: password set"]
    written = (tmp_path / "input").read_text()
    assert 'ALTER ROLE "airflow" PASSWORD \'SCRAM-SHA-256$' in written
    assert written.startswith("SET log_statement = 'none'; SET log_min_error_statement")
    arguments = (tmp_path / "arguments").read_text()
    assert "--namespace postgresql exec --stdin pod/postgresql-0 --container postgresql -- psql" in arguments
    for text in (arguments, written, json.dumps(done)):
        assert "a new one" not in text
    assert "SCRAM" not in arguments + json.dumps(done)


def test_the_module_follows_the_secrets_login(databases: Callable[..., Json], cluster: Cluster, tmp_path: Path) -> None:
    """The former one goes with the note at the Secret."""
    item = secret(password="pencil", username="airflow.2")
    cluster.objects[f"{SECRETS}/postgresql-airflow"] = item
    cluster.objects["/api/v1/namespaces/postgresql/pods/postgresql-0"] = {}
    second = {"airflow.2": {"password": PENCIL, "plain": True, "acts_as": "airflow"}}
    (tmp_path / "output").write_text(json.dumps(state(roles={**state()["roles"], **second})))
    item["metadata"]["annotations"] = {FORMER: "airflow"}
    assert databases()["changes"] == []
    del item["metadata"]["annotations"]
    assert databases()["changes"] == ["role airflow: former password removed"]


def test_the_module_names_what_is_wrong(databases: Callable[..., Json], cluster: Cluster, tmp_path: Path) -> None:
    assert "there is no Secret postgresql/postgresql-airflow" in databases()["msg"]
    # Nothing is there yet: all of it is due.
    assert len(databases(check=True)["changes"]) == 5
    cluster.objects[f"{SECRETS}/postgresql-airflow"] = secret(password="ümlaut")
    assert "Secret postgresql/postgresql-airflow: a password must be printable ASCII" in databases()["msg"]
    assert "'A' is no name" in databases(consumers=("A",))["msg"]
    cluster.objects[f"{SECRETS}/postgresql-airflow"] = secret(password="pencil")
    (tmp_path / "fail").write_text(f"psql: ERROR: near PASSWORD '{PENCIL}' no")
    message = databases()["msg"]
    assert "psql in postgresql/pod/postgresql-0 ended with 3: psql: ERROR: near PASSWORD '(a verifier)' no" in message
    (tmp_path / "fail").unlink()
    (tmp_path / "output").write_text(PENCIL)
    message = databases()["msg"]
    assert "is no JSON" in message
    assert "SCRAM" not in message


def test_credentials_are_made_once_and_followed(cluster: Cluster) -> None:
    def run(*consumers: str, check: bool = False) -> Json:
        arguments = {"kubeconfig": "/kc", "namespace": "postgresql", "host": "h.x.svc", "authority": "postgresql-tls"}
        return run_module(modules.postgresql_credentials, {**arguments, "consumers": list(consumers)}, check)

    def values(name: str = "airflow") -> dict[str, str]:
        data = cluster.objects[f"{SECRETS}/postgresql-{name}"]["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    assert run("airflow", check=True)["changed"] is True
    assert f"{SECRETS}/postgresql-airflow" not in cluster.objects
    first = run("airflow")
    made = values()
    assert set(made) == set(postgresql.KEYS)
    assert (made["database"], made["username"], made["ca.crt"], len(made["password"])) == (
        "airflow",
        "airflow",
        "CA",
        40,
    )
    assert made["password"] in made["uri"]
    assert made["password"] not in json.dumps(first)
    assert run("airflow")["changed"] is False
    # It is what a client and our own check of external ones take.
    cluster.objects[f"{SECRETS}/postgresql-tls"] = secret(**{"ca.crt": "-----BEGIN CERTIFICATE-----"})
    assert run("airflow")["changes"] == ["Secret postgresql/postgresql-airflow: ca.crt set"]
    assert secret_faults(values()) == []
    # A deleted password is made anew, one that a person has set stays; the address follows both.
    del cluster.objects[f"{SECRETS}/postgresql-airflow"]["data"]["password"]
    run("airflow")
    assert values()["password"] not in ("", made["password"])
    cluster.objects[f"{SECRETS}/postgresql-airflow"]["data"] |= encode(password="by hand")
    run("airflow")
    assert "airflow:by%20hand@h.x.svc" in values()["uri"]
    # The login that a rotation has put there stays, one that is none of the consumer's does not.
    for username, kept in (("airflow.2", "airflow.2"), ("somebody", "airflow")):
        cluster.objects[f"{SECRETS}/postgresql-airflow"]["data"] |= encode(username=username)
        run("airflow")
        assert values()["username"] == kept
        assert f"//{kept}:by%20hand@" in values()["uri"]
    assert (
        run("other")["changes"][-1] == "Secret postgresql/postgresql-airflow removed: airflow is no consumer any more"
    )
    assert f"{SECRETS}/postgresql-tls" in cluster.objects
    assert "is listed twice" in run("a", "a")["msg"]


GOOD = {
    "host": "db.example.org",
    "port": "5432",
    "database": "airflow",
    "username": "airflow",
    "password": "a secret one",
    "uri": uri("db.example.org", "5432", "airflow", "a secret one"),
    "ca.crt": "-----BEGIN CERTIFICATE-----",
}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (GOOD, ""),
        ({}, "it has no host, no port, no database"),
        ({**GOOD, "password": "a secret one\n"}, "password ends in a line break"),
        ({**GOOD, "port": "x"}, "port is 'x', no number"),
        ({**GOOD, "ca.crt": "x"}, "ca.crt is no certificate"),
        ({**GOOD, "uri": "http://x"}, "uri is none that a client"),
        ({**GOOD, "password": "another one"}, "uri says something else than password"),
        ({**GOOD, "uri": GOOD["uri"].partition("?")[0]}, "uri must end in ?sslmode=verify-full"),
    ],
)
def test_secrets_of_external_servers_are_judged(values: dict[str, str], said: str) -> None:
    found = "; ".join(secret_faults(values))
    assert said in found if said else not found
    assert "a secret one" not in found


def test_services_of_the_cluster() -> None:
    assert service_of("shared-rw.databases.svc") == ("databases", "shared-rw")
    assert service_of("shared-rw.databases.svc.cluster.local") == ("databases", "shared-rw")
    assert service_of("db.example.org") is None


class Connection:
    """One that is open; `row` is the answer to the one question."""

    def __init__(self, version: int = 150000, allowed: bool = True) -> None:
        self.info = type("Info", (), {"server_version": version})
        self.allowed = allowed

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, _: str) -> Connection:
        return self

    def fetchone(self) -> tuple[bool]:
        return (self.allowed,)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Connection(), ""),
        (Connection(version=120000), "PostgreSQL 12 is too old; at least 13"),
        (Connection(allowed=False), "may make no tables in schema public"),
        ('FATAL:  password authentication failed for user "airflow"', "the password is not that of the user"),
        ("server does not support SSL, but SSL was required", "the server offers no TLS"),
        ('FATAL:  database "airflow" does not exist', "make the database, owned by the user"),
        ("SSL error: certificate verify failed", "another authority has signed"),
        ('server certificate for "x" does not match host name "y"', "certificate is not one for that host"),
        ("connection timeout expired", "nothing answers"),
        ("something else", "it refuses (something else)"),
    ],
)
def test_answers_of_external_servers(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, answer: Connection | str, said: str
) -> None:
    asked: list[Json] = []

    def connect(**options: Any) -> Connection:
        asked.append({**options, "authority": Path(options["sslrootcert"]).read_text()})
        if isinstance(answer, str):
            raise psycopg.OperationalError(answer)
        return answer

    monkeypatch.setattr(psycopg, "connect", connect)
    cluster.objects[f"{SECRETS}/postgresql-airflow"] = secret(**GOOD)
    result = run_module(modules.postgresql_external, {"kubeconfig": "/kc", "kubectl": "/k", "consumers": ["airflow"]})
    assert (asked[0]["sslmode"], asked[0]["host"], asked[0]["hostaddr"]) == ("verify-full", "db.example.org", None)
    assert asked[0]["authority"] == GOOD["ca.crt"]
    if not said:
        assert result == {"changed": False, **{key: result[key] for key in result if key != "changed"}}
        assert not result.get("failed")
        return
    (fault,) = result["faults"]
    assert fault.startswith(
        "Secret postgresql/postgresql-airflow: db.example.org:5432, database airflow, user airflow: "
    )
    assert said in fault
    assert "a secret one" not in json.dumps(result)


def test_a_server_in_the_cluster_is_reached_through_its_service(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: list[tuple[Any, ...]] = []

    @contextlib.contextmanager
    def forward(*words: Any) -> Iterator[str]:
        ways.append(words)
        if "gone" in words[2]:
            raise SlipwayError("no way to gone/service/db: not found")
        yield "127.0.0.1:40001"

    asked: list[Json] = []

    def connect(**options: Any) -> Connection:
        asked.append(options)
        return Connection()

    monkeypatch.setattr(modules.postgresql_external, "port_forward", forward)
    monkeypatch.setattr(psycopg, "connect", connect)
    for name, space in (("airflow", "databases"), ("other", "gone")):
        host = f"db.{space}.svc"
        values = {**GOOD, "host": host, "uri": uri(host, "5432", "airflow", "a secret one")}
        cluster.objects[f"{SECRETS}/postgresql-{name}"] = secret(**values)
    arguments = {"kubeconfig": "/kc", "kubectl": "/k", "consumers": ["airflow", "other", "missing"]}
    result = run_module(modules.postgresql_external, arguments)
    assert [words[:5] for words in ways] == [
        ("/k", "/kc", space, "service/db", 5432) for space in ("databases", "gone")
    ]
    assert (asked[0]["host"], asked[0]["hostaddr"], asked[0]["port"]) == ("db.databases.svc", "127.0.0.1", 40001)
    assert result["faults"][0].endswith("no way to gone/service/db: not found")
    assert result["faults"][1] == "Secret postgresql/postgresql-missing is not there"
    assert "nothing was changed" in result["msg"]
