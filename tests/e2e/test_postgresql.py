"""PostgreSQL lets in whom it should, keeps what was committed, and comes back from its archive."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from ansible.module_utils.slipway.port_forward import standing_port_forward
from kubernetes.client.exceptions import ApiException

from .front_door import eventually
from .site import Site, Store

NAMESPACE = "postgresql"
POD = "postgresql-0"
BUCKET = "postgresql-backups"
LABEL = "slipway/postgresql-consumer"
SCHEMA = "slipway_test"
REHEARSAL = "postgresql-rehearsal"
# Seconds within which what is quick must have happened.
TIMEOUT = 120.0
# What a client is told by a forwarded port that has lost the server: it is then made anew, in a moment.
FORWARDING = (
    "unexpected eof",
    "closed the connection unexpectedly",
    "Connection refused",
    "connection timeout expired",
)
PSQL = ["psql", "--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"]


class Database:
    """One consumer's database, as that consumer sees it, and the server as its superuser does."""

    def __init__(self, site: Site, address: str, values: dict[str, str], authority: Path) -> None:
        self.site = site
        self.address = address
        self.values = values
        self.authority = authority
        # Not a parameter: these are in the tracebacks of failed tests.
        self.password = authority.with_name("password")
        self.password.touch(mode=0o600)
        self.password.write_text(f"*:*:*:*:{values['password']}\n")

    def connect(self, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """Connect with everything checked; `options` replace the consumer's own. What the forwarding loses is asked again."""
        host, _, port = self.address.rpartition(":")
        wanted: dict[str, Any] = {
            "host": self.values["host"],
            "hostaddr": host,
            "port": port,
            "dbname": self.values["database"],
            "user": self.values["username"],
            "passfile": str(self.password),
            "sslmode": "verify-full",
            "sslrootcert": str(self.authority),
            "connect_timeout": 5,
            **options,
        }
        end = time.monotonic() + 60
        while True:
            try:
                return psycopg.connect(**wanted)
            except psycopg.OperationalError as error:
                if not any(each in str(error) for each in FORWARDING) or time.monotonic() > end:
                    raise
            time.sleep(1)

    def exec(self, *command: str, pod: str = POD, check: bool = True) -> str:
        """Run a command in the server's container; return what it printed."""
        words = [str(self.site.kubectl), "--kubeconfig", str(self.site.kubeconfig), "--namespace", NAMESPACE]
        words += ["exec", pod, "--container", "postgresql", "--", *command]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
        assert not check or done.returncode == 0, f"{command[0]} in {pod}: {done.stdout}{done.stderr}"
        return done.stdout.strip() if done.returncode == 0 else ""

    def sql(self, text: str, database: str = "postgres", pod: str = POD, check: bool = True) -> str:
        """Run SQL as the superuser, inside."""
        return self.exec(*PSQL, f"--dbname={database}", "--command", text, pod=pod, check=check)


@pytest.fixture(scope="module")
def database(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """The first consumer's database, with an empty schema of the tests; skips where PostgreSQL is not ours."""
    try:
        site.apps.read_namespaced_stateful_set("postgresql", NAMESPACE)
    except ApiException as error:
        if error.status != 404:
            raise
        pytest.skip("this site has no PostgreSQL of its own")
    found = site.core.list_namespaced_secret(NAMESPACE, label_selector=LABEL).items
    if not found:
        pytest.skip("PostgreSQL has no consumer")
    values = site.secret(NAMESPACE, sorted(item.metadata.name for item in found)[0])
    authority = tmp_path_factory.mktemp("postgresql") / "ca.crt"
    authority.write_text(values["ca.crt"])
    service = (NAMESPACE, "service/postgresql", 5432)
    with standing_port_forward(str(site.kubectl), str(site.kubeconfig), *service) as address:
        made = Database(site, address, values, authority)
        drop = f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"
        made.sql(drop, values["database"])
        # What logs in acts as the role with the database's name.
        made.sql(f"CREATE SCHEMA {SCHEMA} AUTHORIZATION {values['database']}", values["database"])
        yield made
        eventually(lambda: made.sql("SELECT 1", check=False) == "1", TIMEOUT)
        made.sql(drop, values["database"])


@pytest.mark.smoke
def test_a_consumer_comes_in_over_tls(database: Database) -> None:
    """With the server's name and the authority of its Secret checked; it may make tables in its database."""
    with database.connect() as connection:
        assert connection.info.pgconn.ssl_in_use
        connection.execute(f"CREATE TABLE {SCHEMA}.made (number int)")
    said = psycopg.conninfo.conninfo_to_dict(database.values["uri"])
    assert (said["sslmode"], said["host"], said["dbname"]) == (
        "verify-full",
        database.values["host"],
        database.values["database"],
    )


def refusal(database: Database, options: dict[str, str]) -> str:
    """What the server says to a connection that it refuses."""
    with pytest.raises(psycopg.OperationalError) as refused:
        database.connect(**options)
    return str(refused.value)


@pytest.mark.smoke
def test_strangers_are_refused(database: Database) -> None:
    """A wrong password, no TLS, the databases of others, the superuser."""
    refusals: list[tuple[dict[str, str], str]] = [
        ({"password": "wrong"}, "password authentication failed"),
        ({"sslmode": "disable"}, "no encryption"),
        ({"dbname": "postgres"}, r"no pg_hba\.conf entry"),
        ({"user": "postgres", "dbname": "postgres"}, r"no pg_hba\.conf entry"),
    ]
    for options, said in refusals:
        assert re.search(said, refusal(database, options)), options
    assert database.sql("SELECT count(*) FROM pg_authid WHERE rolsuper AND rolpassword IS NOT NULL") == "0"


@pytest.mark.smoke
def test_the_archive_is_current(site: Site, database: Database) -> None:
    """A segment that is closed now is in the bucket in a moment, and there is a base backup that is not too old."""
    segment = database.sql("SELECT pg_walfile_name(pg_switch_wal())")
    identifier = database.sql("SELECT system_identifier FROM pg_control_system()")
    with Store.open(site, NAMESPACE, "minio-postgresql") as store:

        def names(prefix: str) -> list[str]:
            listed = store.client.list_objects(bucket_name=BUCKET, prefix=f"{identifier}/{prefix}/", recursive=True)
            return [str(item.object_name) for item in listed]

        eventually(lambda: any(segment in name for name in names("wals")), TIMEOUT)

    def complete() -> list[datetime]:
        backups = json.loads(database.exec("python3", "/opt/postgres_pod.py", "backups"))
        return [datetime.fromisoformat(each["end"]) for each in backups if each["complete"]]

    # The first one begins with the server, and again a minute later where the bucket was not there yet.
    ends = eventually(complete, 240)
    age = (datetime.now(UTC) - max(ends)).total_seconds() / 3600
    containers = site.core.read_namespaced_pod(POD, NAMESPACE).spec.containers
    (interval,) = [each.value for each in containers[0].env if each.name == "BACKUP_INTERVAL_HOURS"]
    assert age < 2 * float(interval)


class Writer(threading.Thread):
    """Commits one number after the other and remembers which, over every break."""

    def __init__(self, database: Database) -> None:
        super().__init__(daemon=True)
        self.database = database
        self.committed: list[int] = []
        self.breaks = 0
        self.over = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.over.is_set():
            try:
                with self.database.connect(autocommit=True) as connection:
                    while not self.over.is_set():
                        number += 1
                        connection.execute(f"INSERT INTO {SCHEMA}.rows VALUES (%s)", (number,))
                        self.committed.append(number)
            except psycopg.Error:
                self.breaks += 1
                self.over.wait(0.2)


@pytest.mark.fault
def test_a_killed_pod_loses_no_committed_row(site: Site, database: Database) -> None:
    """While a client writes, the pod is killed; every row whose commit was confirmed is there afterwards."""
    with database.connect() as connection:
        connection.execute(f"CREATE TABLE {SCHEMA}.rows (number int PRIMARY KEY)")
    before = site.core.read_namespaced_pod(POD, NAMESPACE).metadata.uid
    writer = Writer(database)
    writer.start()
    try:
        eventually(lambda: len(writer.committed) > 50, TIMEOUT)
        site.core.delete_namespaced_pod(POD, NAMESPACE, grace_period_seconds=0)

        def back() -> bool:
            pod = site.core.read_namespaced_pod(POD, NAMESPACE)
            statuses = pod.status.container_statuses or []
            return pod.metadata.uid != before and bool(statuses) and all(each.ready for each in statuses)

        eventually(back, 180)
        written = len(writer.committed)
        eventually(lambda: len(writer.committed) > written + 50, TIMEOUT)
    finally:
        writer.over.set()
        writer.join(30)
    assert writer.breaks
    with database.connect() as connection:
        found = {row[0] for row in connection.execute(f"SELECT number FROM {SCHEMA}.rows").fetchall()}
    assert set(writer.committed) <= found


@contextmanager
def rehearsal(site: Site, target_time: str) -> Iterator[str]:
    """A second server on a volume of its own that goes away with it, restored from the site's archive, to which it never writes."""
    core = site.core
    template = core.api_client.sanitize_for_serialization(
        site.apps.read_namespaced_stateful_set("postgresql", NAMESPACE).spec.template
    )
    request = {"target_time": target_time, "timeline": "latest", "source": ""}

    def remove() -> None:
        for delete, name in (
            (core.delete_namespaced_pod, REHEARSAL),
            (core.delete_namespaced_config_map, REHEARSAL),
        ):
            try:
                delete(name, NAMESPACE, grace_period_seconds=0)
            except ApiException as error:
                if error.status != 404:
                    raise

    remove()
    map_ = {"metadata": {"name": REHEARSAL}, "data": {"request.json": json.dumps(request)}}
    owner = core.create_namespaced_config_map(NAMESPACE, map_).metadata.uid
    spec = template["spec"]
    spec["containers"] = [each for each in spec["containers"] if each["name"] == "postgresql"]
    # Without the archive: its timeline is nobody's.
    spec["containers"][0]["command"] += ["-c", "archive_mode=off"]
    spec["containers"][0].pop("livenessProbe")
    # Never ready: the Service sends nobody here.
    spec["readinessGates"] = [{"conditionType": "slipway-test/never"}]
    for volume in spec["volumes"]:
        if volume["name"] == "data":
            volume.pop("persistentVolumeClaim")
            volume["emptyDir"] = {}
        if volume["name"] == "restore":
            volume["configMap"] = {"name": REHEARSAL}
    # With the labels come the NetworkPolicies; owned by something, no controller takes it for its own.
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": REHEARSAL, "uid": owner, "controller": True}
    metadata = {"name": REHEARSAL, "labels": template["metadata"]["labels"], "ownerReferences": [reference]}
    try:
        core.create_namespaced_pod(NAMESPACE, {"metadata": metadata, "spec": spec})
        yield REHEARSAL
    except AssertionError as failure:
        pod = core.read_namespaced_pod(REHEARSAL, NAMESPACE)
        raise AssertionError("\n".join([str(failure), *site.pod_evidence(NAMESPACE, pod)])) from failure
    finally:
        remove()


@pytest.mark.fault
def test_a_point_in_time_comes_back(site: Site, database: Database) -> None:
    """Of a table that was dropped a moment later, every row of that moment: base backup, WAL and all."""
    name = database.values["database"]
    database.exec("python3", "/opt/postgres_pod.py", "backup")
    database.sql(f"CREATE TABLE {SCHEMA}.kept AS SELECT generate_series(1, 1000) AS number", name)
    time.sleep(1)
    moment = database.sql("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US+00:00')")
    time.sleep(1)
    database.sql(f"DROP TABLE {SCHEMA}.kept", name)
    segment = database.sql("SELECT pg_walfile_name(pg_switch_wal())")
    archived = "SELECT coalesce(last_archived_wal, '') >= '{}' FROM pg_stat_archiver"
    eventually(lambda: database.sql(archived.format(segment)) == "t", TIMEOUT)
    with rehearsal(site, moment) as pod:
        ask = f"SELECT count(*) FROM {SCHEMA}.kept"
        found = eventually(lambda: database.sql(ask, name, pod=pod, check=False), 240)
    assert found == "1000"
    assert database.sql(f"SELECT to_regclass('{SCHEMA}.kept') IS NULL", name) == "t"
