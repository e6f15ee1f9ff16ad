"""The image of PostgreSQL, with the role's own configuration, beside a real MinIO: no cluster, only containers.

It needs podman as root and both images in the cache (`make bundle`). The tests follow each other: the first ones make what the later
ones restore. Containers, their network and its firewall rules are gone afterwards.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ansible.module_utils
import psycopg
import pytest
import yaml
from cryptography import x509
from minio import Minio

from tests.lab import bundle, images, nodes, postgresql, residue
from tests.lab.cache import PROJECT, Cache, hash_inputs

ansible.module_utils.__path__.append(str(PROJECT / "plugins/module_utils"))
sys.path.append(str(PROJECT / "plugins"))
from ansible.module_utils.slipway import secrets  # noqa: E402
from ansible.module_utils.slipway.minio_access import Login, Tenant, plan  # noqa: E402
from ansible.module_utils.slipway.minio_client import MinioStore  # noqa: E402
from ansible.module_utils.slipway.postgresql import sql_in_pod, uri, verifier  # noqa: E402
from ansible.module_utils.slipway.postgresql_external import answer_faults  # noqa: E402
from ansible.module_utils.slipway.postgresql_rotation import Holder, Rotation  # noqa: E402

from modules import postgresql_databases  # noqa: E402
from tests.unit.plugins import authorities  # noqa: E402
from tests.unit.plugins.fakes import FakeKube, run_module  # noqa: E402

# Podman's own are more than some machines let a process have.
LIMITS = ("--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096")
# Of the containers' names; that of their network.
PREFIX = "slipway-test-postgresql"
# Beside those of the lab and its scenarios.
SUBNET = "10.77.7.0/24"
HOST = "postgresql.postgresql.svc"
BUCKET = "postgresql-backups"
UID = 10005
ROOT, TENANT = Login("test-root", "root-secret-key"), Login("postgresql", "archive-secret-key")
# The role's own are for more memory than this needs.
SETTINGS = "max_connections = 30\nshared_buffers = 32MB\njit = off\ntimezone = UTC\n"
# Stands for kubectl exec: the container's name is the pod's.
KUBECTL = """#!/bin/sh
while [ "$1" != exec ]; do shift; done
pod=${3#pod/}
while [ "$1" != -- ]; do shift; done
shift
exec podman exec --interactive "$pod" "$@"
"""


def podman(*words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run podman; its output is in the message of a failure."""
    done = subprocess.run(["podman", *map(str, words)], capture_output=True, text=True, check=False, timeout=120)
    assert not check or done.returncode == 0, f"podman {words[:3]}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done


def until(what: str, condition: Callable[[], Any], timeout: float = 30) -> Any:
    """Wait until a condition gives something true, and return that."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {timeout:.0f} s: {what}"
        time.sleep(0.2)
    return value


def address(container: str) -> str:
    """The address of a container on the tests' network."""
    template = f'{{{{(index .NetworkSettings.Networks "{PREFIX}").IPAddress}}}}'
    return podman("inspect", "--format", template, container).stdout.strip()


def firewall() -> list[tuple[str, str]]:
    """Every chain (`:NAME`) and rule (`-A NAME ...`) of this machine, each with its table."""
    found, table = [], ""
    for line in subprocess.check_output(["iptables-save"], text=True).splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith((":", "-A")):
            found.append((table, line.split()[0] if line[0] == ":" else line))
    return found


@contextmanager
def network() -> Iterator[None]:
    """The tests' own network; what podman leaves of it in the firewall is taken away, and the rest is as before."""
    residue.remember()
    podman("network", "rm", "--force", PREFIX, check=False)
    before = firewall()
    podman("network", "create", "--disable-dns", f"--subnet={SUBNET}", PREFIX)
    try:
        yield
    finally:
        podman("network", "rm", PREFIX)
        left = [each for each in firewall() if each not in before]
        words = [(table, shlex.split(line)) for table, line in left if line.startswith("-A")]
        words = [(table, ["-D", *rule[1:]]) for table, rule in words]
        words += [(table, ["-X", line[1:]]) for table, line in left if line.startswith(":")]
        for table, command in words:
            subprocess.run(["iptables", "--wait", "-t", table, *command], check=True, capture_output=True)
        residue.restore()
        after = firewall()
        assert [each for each in after if each not in before] == []
        # Empty chains of podman's that were left by somebody before may go as well, rules may not.
        assert [each for each in before if each[1].startswith("-A") and each not in after] == []


@dataclass
class World:
    """A MinIO, an authority, and the places that the servers' pods share."""

    folder: Path
    minio: str
    image: str
    authority: authorities.Made
    kube: FakeKube = field(default_factory=FakeKube)
    pods: list[Pod] = field(default_factory=list)

    @property
    def store(self) -> Minio:
        return Minio(
            endpoint=f"{address(self.minio)}:9000", access_key=ROOT.access_key, secret_key=ROOT.secret_key, secure=False
        )

    def objects(self, prefix: str) -> list[str]:
        """The names of the objects below a prefix of the bucket."""
        found = self.store.list_objects(bucket_name=BUCKET, prefix=prefix, recursive=True)
        return [str(item.object_name) for item in found]

    def password(self, consumer: str) -> str:
        """The password in a consumer's Secret."""
        data = self.kube.objects[f"/api/v1/namespaces/postgresql/secrets/postgresql-{consumer}"]["data"]
        return base64.b64decode(data["password"]).decode()

    def issue(self, folder: Path) -> int:
        """Write a certificate of the server's, as the kubelet mounts it; return its serial number."""
        made = authorities.make(HOST, by=self.authority, names=(HOST,))
        for name, text in (("tls.crt", made.pem), ("tls.key", made.key_pem)):
            part = folder / f".{name}"
            part.write_text(text)
            part.chmod(0o440)
            os.chown(part, 0, UID)
            part.replace(folder / name)
        return int(made.certificate.serial_number)

    def pod(self, name: str, request: dict[str, str] | None = None) -> Pod:
        """The places of another pod; nothing runs yet."""
        made = Pod(self, f"{PREFIX}-{name}", self.folder / name)
        # Of a run that was killed.
        made.remove()
        self.pods.append(made)
        for place in ("volume", "socket", "config", "tls", "archive", "restore", "tmp"):
            (made.folder / place).mkdir(parents=True)
        for place in ("volume", "socket", "tmp"):
            os.chown(made.folder / place, UID, UID)
        for file in (PROJECT / "roles/postgresql/files").iterdir():
            shutil.copy(file, made.folder / "config")
        (made.folder / "config/settings.conf").write_text(SETTINGS)
        values = {
            "accessKey": TENANT.access_key,
            "secretKey": TENANT.secret_key,
            "endpoint": f"{address(self.minio)}:9000",
        }
        for key, value in values.items():
            (made.folder / "archive" / key).write_text(value)
        self.issue(made.folder / "tls")
        if request is not None:
            (made.folder / "restore/request.json").write_text(json.dumps(request))
        return made


@dataclass
class Pod:
    """The containers of one pod, as the role's StatefulSet runs them."""

    world: World
    name: str
    folder: Path

    def run(self, name: str, *command: str, detach: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command in a container of the pod."""
        places = {
            "volume": "/var/lib/postgresql",
            "socket": "/run/postgresql",
            "tmp": "/tmp",
            "config": "/etc/postgresql/config:ro",
            "tls": "/etc/postgresql/tls:ro",
            "archive": "/etc/postgresql/archive:ro",
            "restore": "/etc/postgresql/restore:ro",
        }
        volumes = [f"--volume={self.folder / place}:{target}" for place, target in places.items()]
        options = ["--detach"] if detach else ["--rm"]
        security = ["--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges"]
        variables = [f"--env=ARCHIVE_BUCKET={BUCKET}"]
        words = ["run", f"--name={name}", f"--network={PREFIX}", *LIMITS, *options, *security, *variables, *volumes]
        return podman(*words, self.world.image, *command, check=detach)

    def prepare(self) -> subprocess.CompletedProcess[str]:
        """Run the init container."""
        return self.run(f"{self.name}-prepare", "python3", "/opt/postgres_pod.py", "prepare")

    def start(self) -> None:
        """Run the server; return when it serves."""
        self.launch()
        until("the server serves", lambda: self.ready() or self.evidence(), 60)

    def launch(self) -> None:
        """Run the server."""
        config = "config_file=/etc/postgresql/config/postgresql.conf"
        self.run(self.name, "postgres", "-c", config, detach=True)

    def run_again(self) -> None:
        """Start a server that has stopped."""
        podman("start", self.name)
        until("the server serves again", self.ready)

    def ready(self) -> bool:
        return podman("exec", self.name, "pg_isready", "--quiet", check=False).returncode == 0

    def running(self) -> bool:
        return podman("inspect", "--format", "{{.State.Running}}", self.name).stdout.strip() == "true"

    def evidence(self) -> bool:
        """Fail with the log of a server that has ended; False for one that runs."""
        assert self.running(), self.log()
        return False

    def log(self) -> str:
        done = podman("logs", self.name)
        return done.stdout + done.stderr

    def care(self, verb: str) -> str:
        """Run a verb of the pod's program beside the server."""
        return podman("exec", self.name, "python3", "/opt/postgres_pod.py", verb).stdout

    def sql(self, text: str, database: str = "postgres") -> str:
        """Run SQL as the superuser, inside."""
        words = ["psql", "--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"]
        return podman("exec", self.name, *words, f"--dbname={database}", "--command", text).stdout.strip()

    def connect(self, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """Connect from outside, as a consumer does."""
        authority = self.world.folder / "ca.crt"
        authority.write_text(self.world.authority.pem)
        wanted: dict[str, Any] = {
            "host": HOST,
            "hostaddr": address(self.name),
            "dbname": "airflow",
            "user": "airflow",
            "password": options.get("password") or self.world.password("airflow"),
            "sslmode": "verify-full",
            "sslrootcert": str(authority),
            "connect_timeout": 5,
            **options,
        }
        return psycopg.connect(**wanted)

    def stop(self) -> None:
        """End the server as the kubelet does."""
        podman("stop", "--time=60", self.name)

    def remove(self) -> None:
        names = (self.name, f"{self.name}-prepare", f"{self.name}-keeper")
        podman("rm", "--force", "--ignore", "--time=5", *names)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """MinIO with an empty bucket; all containers are removed afterwards."""
    nodes.use_own_settings()
    cache, minio, image = Cache(), bundle.Plan().minio, postgresql.image()
    stored = {
        minio.reference: cache.path("image", "minio", hash_inputs("minio", minio.key)),
        image.reference: cache.path("image", image.name, image.key),
    }
    missing = [str(path) for path in stored.values() if not path.exists()]
    if os.geteuid() or not shutil.which("podman") or missing:
        pytest.skip(f"needs root, podman and {', '.join(missing) or 'images'} (make bundle)")
    folder = tmp_path_factory.mktemp("postgresql")
    server = f"{PREFIX}-minio"
    (folder / "kubectl").write_text(KUBECTL)
    (folder / "kubectl").chmod(0o755)
    made = World(folder, server, image.reference, authorities.make("Test CA", authority=True))
    with images.passing(*stored), network():
        for reference, path in stored.items():
            images.load(path, reference)
        podman("rm", "--force", "--ignore", "--time=0", server)
        login = [f"--env=MINIO_ROOT_USER={ROOT.access_key}", f"--env=MINIO_ROOT_PASSWORD={ROOT.secret_key}"]
        words = [
            "run",
            "--detach",
            f"--name={server}",
            f"--network={PREFIX}",
            *LIMITS,
            "--user=0",
            *login,
            "--tmpfs=/data",
        ]
        podman(*words, minio.reference, "minio", "server", "/data", "--address=:9000")
        try:
            until("MinIO answers", lambda: _answers(made))
            # Bucket, user and policy as on a site.
            store = MinioStore(f"{address(server)}:9000", ROOT)
            tenant = Tenant(TENANT.access_key, (BUCKET,), "postgresql", "minio-postgresql")
            for change in plan(store, [tenant], {tenant.name: TENANT}):
                change.do(store)
            yield made
        finally:
            for pod in made.pods:
                pod.remove()
            podman("rm", "--force", "--ignore", "--time=0", server)


def _answers(world: World) -> bool:
    try:
        return bool(
            urllib.request.urlopen(f"http://{address(world.minio)}:9000/minio/health/live", timeout=1).status == 200
        )
    except OSError:
        return False


@pytest.fixture(scope="module")
def first(world: World) -> Pod:
    """A server on an empty volume."""
    pod = world.pod("first")
    done = pod.prepare()
    assert done.returncode == 0, done.stderr
    pod.start()
    return pod


def secret(world: World, consumer: str, password: str) -> None:
    """A consumer's Secret, as far as the server is concerned."""
    path = f"/api/v1/namespaces/postgresql/secrets/postgresql-{consumer}"
    data = {"password": base64.b64encode(password.encode()).decode()}
    world.kube.objects[path] = {"metadata": {"resourceVersion": "1"}, "data": data}


def databases(world: World, pod: Pod, monkeypatch: pytest.MonkeyPatch, *consumers: str, check: bool = False) -> Any:
    """Run the module; return its changes."""
    monkeypatch.setattr(postgresql_databases, "KubeClient", lambda _: world.kube)
    world.kube.objects[f"/api/v1/namespaces/postgresql/pods/{pod.name}"] = {}
    arguments = {"kubeconfig": "/none", "kubectl": str(world.folder / "kubectl"), "consumers": list(consumers)}
    result = run_module(postgresql_databases, {**arguments, "pod": pod.name}, check)
    assert not result.get("failed"), result
    return result["changes"]


def test_an_empty_volume_becomes_a_server(world: World, first: Pod) -> None:
    """With checksums and TLS; the superuser has no password and comes from inside only."""
    assert first.sql("SELECT current_setting('data_checksums'), current_setting('ssl'), current_setting('password_encryption')") == (
        "on|on|scram-sha-256"
    )  # fmt: skip
    assert first.sql("SELECT rolname FROM pg_authid WHERE rolpassword IS NOT NULL") == ""
    for mode in ("require", "disable"):
        with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
            first.connect(user="postgres", dbname="postgres", password="x", sslmode=mode)
    again = first.prepare()
    assert (again.returncode, again.stderr) == (0, "")


def test_consumers(world: World, first: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its own database, over TLS, with the password of its Secret; a second run finds nothing to do."""
    secret(world, "airflow", "first-password-of-airflow")
    secret(world, "model-registry", "it's a \\ strange % one")
    both = ("airflow", "model-registry")
    due = databases(world, first, monkeypatch, *both, check=True)
    assert first.sql("SELECT count(*) FROM pg_database") == "3"
    assert databases(world, first, monkeypatch, *both) == due
    assert "database model_registry made" in due
    assert databases(world, first, monkeypatch, *both) == []

    with first.connect() as connection:
        assert connection.info.pgconn.ssl_in_use
        connection.execute("CREATE TABLE kept (number int)")
    other = {"user": "model_registry", "password": world.password("model-registry")}
    first.connect(**other, dbname="model_registry").close()
    refusals: list[tuple[dict[str, str], str]] = [
        ({**other, "dbname": "airflow"}, r"no pg_hba\.conf entry"),
        ({"dbname": "postgres"}, r"no pg_hba\.conf entry"),
        ({"sslmode": "disable"}, r"no pg_hba\.conf entry.*no encryption"),
        ({"password": "first-password-of-airfloW"}, "password authentication failed"),
        ({"host": "localhost"}, "does not match host name"),
    ]
    for options, said in refusals:
        with pytest.raises(psycopg.OperationalError, match=said):
            first.connect(**options)


def test_a_rotated_password_is_followed(world: World, first: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """And neither it nor what the server keeps of it is in the server's log."""
    before = world.password("airflow")
    secret(world, "airflow", "second-password-of-airflow")
    assert databases(world, first, monkeypatch, "airflow", "model-registry") == ["role airflow: password set"]
    first.connect().close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        first.connect(password=before)
    # Who is no consumer any more is out, and in again with the next run that says so.
    with first.connect(
        user="model_registry", dbname="model_registry", password=world.password("model-registry")
    ) as left:
        (change,) = databases(world, first, monkeypatch, "airflow")
        assert "model_registry locked out" in change
        with pytest.raises(psycopg.OperationalError):
            left.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match=r"no pg_hba\.conf entry"):
        first.connect(user="model_registry", dbname="model_registry", password=world.password("model-registry"))
    assert databases(world, first, monkeypatch, "airflow", "model-registry") == ["role model_registry let in"]
    log = first.log()
    assert "SCRAM-SHA-256" not in log
    assert "password-of-airflow" not in log


def test_logins_are_exchanged_while_a_client_writes(world: World, first: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two take turns, and what either makes belongs to one role. No connection is refused; the former password is worth nothing then."""
    kube, path = world.kube, secrets.path("postgresql", "postgresql-airflow")

    def values() -> dict[str, str]:
        return {key: base64.b64decode(value).decode() for key, value in kube.objects[path]["data"].items()}

    @contextmanager
    def way(*_: object) -> Iterator[str]:
        yield f"{address(first.name)}:5432"

    def connect(login: dict[str, str]) -> psycopg.Connection[tuple[Any, ...]]:
        return first.connect(user=login["username"], password=login["password"], autocommit=True)

    given = {"host": HOST, "port": "5432", "database": "airflow", "username": "airflow", "password": "third-password"}
    given |= {"uri": uri(HOST, "5432", "airflow", "third-password"), "ca.crt": world.authority.pem}
    kube.objects.pop(path)
    keys = [secrets.Key(key, value=value) for key, value in given.items()]
    secrets.ensure(kube, "postgresql", "postgresql-airflow", keys, {})
    both = ("airflow", "model-registry")
    assert databases(world, first, monkeypatch, *both) == ["role airflow: password set"]
    sql = sql_in_pod(str(world.folder / "kubectl"), "/none", "postgresql", first.name, "postgresql", 30)
    with connect(values()) as connection:
        connection.execute("CREATE TABLE writes (number int PRIMARY KEY)")
    over, written, refusals = threading.Event(), set[int](), list[str]()

    def write() -> None:
        number = 0
        while not over.is_set():
            try:
                with connect(values()) as connection:
                    for _ in range(10):
                        number += 1
                        connection.execute("INSERT INTO writes VALUES (%s)", (number,))
                        written.add(number)
                        over.wait(0.02)
            except psycopg.Error as error:
                refusals.append(str(error))
                return

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        for turn, login in enumerate(("airflow.2", "airflow")):
            former = values()
            rotation = Rotation(kube, sql, "postgresql", lambda found: answer_faults(found, way, 5))
            rotation.begin("airflow")
            assert values()["username"] == login
            assert databases(world, first, monkeypatch, *both) == []
            connect(former).close()
            with connect(values()) as connection:
                connection.execute(f"CREATE TABLE turn{turn} (number int)")
            rotation.end(Holder("airflow", ("airflow",), cared_for=True), 30)
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                connect(former)
            assert databases(world, first, monkeypatch, *both) == []
    finally:
        over.set()
        writer.join(10)
    assert refusals == []
    with connect(values()) as connection:
        assert {row[0] for row in connection.execute("SELECT number FROM writes").fetchall()} >= written
        owners = connection.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'").fetchall()
        assert owners == [("airflow",)]
        connection.execute("DROP TABLE writes, turn0, turn1")
    log = first.log()
    assert "SCRAM-SHA-256" not in log and values()["password"] not in log


def test_what_is_wrong_with_a_server_is_said(world: World, first: Pod) -> None:
    """As precheck looks at one that somebody else runs: in the words of a real client and a real server."""
    values = {
        "host": HOST,
        "port": "5432",
        "database": "airflow",
        "username": "airflow",
        "password": world.password("airflow"),
        "ca.crt": world.authority.pem,
    }

    @contextmanager
    def way(_: str, __: str, port: int) -> Iterator[str]:
        yield f"{address(first.name)}:{port}"

    def faults(**changes: str) -> str:
        return "\n".join(answer_faults({**values, **changes}, way, 5))

    assert faults() == ""
    assert "the password is not that of the user" in faults(password="wrong")
    assert "another authority has signed" in faults(**{"ca.crt": authorities.make("x", authority=True).pem})
    assert "is not one for that host" in faults(host="other.postgresql.svc")
    assert "nobody listens there" in faults(port="5433")
    assert "pg_hba.conf lets this user in" in faults(database="model_registry")
    first.sql(f"CREATE ROLE lost LOGIN PASSWORD '{verifier('lost')}' IN ROLE slipway_consumers")
    assert "make the database, owned by the user" in faults(username="lost", database="lost", password="lost")
    first.sql("ALTER DATABASE airflow OWNER TO postgres")
    first.sql("GRANT CONNECT ON DATABASE airflow TO airflow")
    assert "may make no tables in schema public" in faults()
    first.sql("ALTER DATABASE airflow OWNER TO airflow")
    first.sql("DROP ROLE lost")
    first.sql("ALTER SYSTEM SET ssl = off")
    first.sql("SELECT pg_reload_conf()")
    until("there is no TLS", lambda: "the server offers no TLS" in faults())
    first.sql("ALTER SYSTEM RESET ssl")
    first.sql("SELECT pg_reload_conf()")
    until("there is TLS again", lambda: not faults())


def test_a_renewed_certificate_is_served_without_a_restart(world: World, first: Pod) -> None:
    """The sidecar sees it; it also takes the first base backup, as there is none."""
    first.run(f"{first.name}-keeper", "python3", "/opt/postgres_pod.py", "keep", detach=True)
    identifier = first.sql("SELECT system_identifier FROM pg_control_system()")

    def backed_up() -> bool:
        names = [name for name in world.objects(f"{identifier}/base/") if name.endswith("backup.info")]
        return any(
            b"status=DONE" in world.store.get_object(bucket_name=BUCKET, object_name=name).read() for name in names
        )

    until("the first base backup", backed_up, 60)
    started = first.sql("SELECT pg_postmaster_start_time()")
    serial = world.issue(first.folder / "tls")

    def served() -> bool:
        words = ["openssl", "s_client", "-starttls", "postgres", "-connect", f"{address(first.name)}:5432"]
        shown = subprocess.run(words, input="", capture_output=True, text=True, check=False).stdout
        start, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
        if start not in shown:
            return False
        pem = shown[shown.index(start) : shown.index(end) + len(end)]
        return bool(x509.load_pem_x509_certificate(pem.encode()).serial_number == serial)

    until("the new certificate is served", served)
    assert first.sql("SELECT pg_postmaster_start_time()") == started
    podman("rm", "--force", "--time=5", f"{first.name}-keeper")


@dataclass
class Past:
    """What the first server archived."""

    identifier: str
    moment: str


@pytest.fixture(scope="module")
def past(world: World, first: Pod) -> Past:
    """Rows, a moment, more rows, a disaster; all of it archived. The first server has stopped."""
    first.sql("INSERT INTO kept SELECT generate_series(1, 1000)", "airflow")
    time.sleep(0.1)
    moment = datetime.now(UTC).isoformat()
    time.sleep(0.1)
    first.sql("DROP TABLE kept", "airflow")
    identifier = first.sql("SELECT system_identifier FROM pg_control_system()")
    first.stop()
    return Past(identifier, moment)


def test_the_archive_is_complete_when_the_server_has_stopped(world: World, first: Pod, past: Past) -> None:
    """A base backup and all WAL, in a folder of this database cluster's own."""
    assert "database system is shut down" in first.log()
    names = world.objects("")
    assert {name.partition("/")[0] for name in names} == {past.identifier}
    assert any(name.endswith("backup.info") for name in names)
    segments = [name.rpartition("/")[2] for name in names if "/wals/" in name and ".backup" not in name]
    assert segments == [f"{name.partition('.')[0]}.gz" for name in segments]
    assert len(segments) >= 3


@pytest.fixture(scope="module")
def second(world: World, first: Pod, past: Past) -> Pod:
    """The first server's database as it was at the moment before the disaster, on an empty volume."""
    pod = world.pod("second", {"target_time": past.moment, "timeline": "latest", "source": ""})
    done = pod.prepare()
    assert done.returncode == 0, done.stderr
    assert f"restoring {past.identifier} from base backup" in done.stderr
    pod.start()
    return pod


def test_a_point_in_time_is_restored(world: World, second: Pod, past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every row of that moment; passwords are set to those of today, and the archive goes on, on a timeline of its own."""
    assert second.sql("SELECT count(*) FROM kept", "airflow") == "1000"
    secret(world, "airflow", "third-password-of-airflow")
    assert databases(world, second, monkeypatch, "airflow", "model-registry") == ["role airflow: password set"]
    with second.connect() as connection:
        connection.execute("INSERT INTO kept VALUES (1001)")
    # What an interrupted backup leaves.
    names = [name for name in world.objects(f"{past.identifier}/base/") if name.endswith("backup.info")]
    begun = (
        world.store.get_object(bucket_name=BUCKET, object_name=names[0])
        .read()
        .replace(b"status=DONE", b"status=STARTED")
    )
    broken = f"{past.identifier}/base/20010101T000000/backup.info"
    world.store.put_object(bucket_name=BUCKET, object_name=broken, data=io.BytesIO(begun), length=len(begun))
    # The sidecar would: no base backup of this timeline is there.
    second.care("backup")
    assert broken not in world.objects("")
    found = json.loads(second.care("backups"))
    assert [(each["timeline"], each["complete"]) for each in found] == [(1, True), (2, True)]
    # A volume that is not empty is never restored into.
    again = second.prepare()
    assert (again.returncode, again.stderr) == (0, "")
    assert second.sql("SELECT count(*) FROM kept", "airflow") == "1001"
    second.sql("INSERT INTO kept VALUES (1002)", "airflow")
    second.stop()


def test_a_broken_archive_is_not_taken_for_its_end(world: World, second: Pod) -> None:
    """Where the archive cannot be reached the server ends; it goes on where it was once it can be, and loses nothing."""
    pod = world.pod("third", {"target_time": ""})
    done = pod.prepare()
    assert done.returncode == 0, done.stderr
    (pod.folder / "archive/endpoint").write_text("127.0.0.1:9")
    pod.launch()
    until("the server gives up", lambda: not pod.running(), 60)
    assert "could not restore file" in pod.log()
    podman("rm", pod.name)
    (pod.folder / "archive/endpoint").write_text(f"{address(world.minio)}:9000")
    pod.start()
    assert pod.sql("SELECT count(*) FROM kept", "airflow") == "1002"
    pod.remove()


def test_what_a_restoration_has_undone_can_be_had(world: World, second: Pod, past: Past) -> None:
    """By its timeline: there the table was dropped."""
    pod = world.pod("fourth", {"target_time": "", "timeline": "1", "source": past.identifier})
    done = pod.prepare()
    assert done.returncode == 0, done.stderr
    pod.start()
    assert pod.sql("SELECT to_regclass('kept') IS NULL", "airflow") == "t"
    pod.remove()


def test_a_dump_is_loaded_into_another_server(world: World, second: Pod) -> None:
    """As the role loads it; the way from one major version to the next."""
    (command,) = [
        task["ansible.builtin.shell"]["cmd"]
        for task in yaml.safe_load((PROJECT / "roles/postgresql/tasks/load.yml").read_text())
        if "ansible.builtin.shell" in task
    ]
    dump = world.folder / "all.sql"
    edit = re.search(r"sed '[^']*'", command)
    assert edit
    psql = command.partition(" -- ")[2].split()
    second.run_again()
    dump.write_text(podman("exec", second.name, "pg_dumpall").stdout)
    pod = world.pod("fifth")
    assert pod.prepare().returncode == 0
    pod.start()
    text = subprocess.run(["bash", "-c", f"{edit[0]} {dump}"], capture_output=True, text=True, check=True).stdout
    words = ["podman", "exec", "--interactive", pod.name, *psql]
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (
        pod.sql("SELECT count(*) FROM kept", "airflow") == second.sql("SELECT count(*) FROM kept", "airflow") == "1002"
    )
    pod.connect().close()
    pod.remove()
    second.remove()


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"target_time": "2001-01-01"}, r"no base backup of \d+ leads to 2001-01-01"),
        ({"target_time": "yesterday"}, "no time such as"),
        ({"timeline": "77"}, r"timeline is 77; the archive of \d+ has \[1, 2"),
        ({"source": "123"}, "source is 123; the archive has"),
    ],
)
def test_impossible_requests_say_why(
    world: World, second: Pod, request_: dict[str, str], said: str, request: Any
) -> None:
    """And leave the volume empty."""
    pod = world.pod(f"impossible-{request.node.callspec.indices['request_']}", request_)
    done = pod.prepare()
    assert done.returncode == 1
    assert re.search(said, done.stderr), done.stderr
    assert not (pod.folder / "volume/data").exists()


def test_data_of_another_version_is_left_alone(world: World, first: Pod, past: Past) -> None:
    """The message says where the way is described."""
    version = first.folder / "volume/data/PG_VERSION"
    before = version.read_text()
    version.write_text("13\n")
    done = first.prepare()
    version.write_text(before)
    assert done.returncode == 1
    assert "PostgreSQL 13, and this server is PostgreSQL 15: nothing is changed" in done.stderr
