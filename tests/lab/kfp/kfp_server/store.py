"""What the server remembers: pipelines, versions, experiments, recurring runs, runs, tasks and the cache, in MySQL.

Two threads of one process share a `Store`: the API writes what people ask for, the engine what comes of it. Nothing is kept in memory, so
both may be killed at any time. Every method is safe to call from any thread; a database that is away raises `Unavailable`, and
the next call connects again.

What the engine uses:

    store.changed            threading.Event: set when there is news for the engine (a new run, cancel, retry, delete); wait on it
                             with a time limit as the pace, then clear it
    store.leads()            whether this process is the one that drives runs (two overlap while a Deployment rolls); ask at each tick
    store.list_active_runs() every run that is not final, oldest first, as fresh copies
    store.run(run_id)        one run, or None when it was deleted: its pods are then the engine's to remove
    store.save_run(run)      writes the engine's half of a run: state, state_history, finished_at, error, engine. Never touches the
                             API's half, and a deleted run stays deleted
    store.tasks(run_id)      the tasks of a run, in the order they were made
    store.save_task(task)    inserts or updates one task (not of a deleted run); `task.state_json` is the engine's own
    store.remove_task(id)    for a retry that starts tasks anew
    store.cached(key)        what was kept under a fingerprint, or None; store.cache(key, value) keeps it
    run.enter(state)         sets a state and its entry in state_history; `task.enter(state)` the same

Schedules are the API's (schedules.py): to the engine their runs are runs as any.

What the API reads of a task besides its dataclass: `task.state_json["artifacts"]`, a dict of names and URIs of what its pod kept
(`executor-logs` among them), for the endpoint that reads an artifact.

Flags of a run that the API sets and the engine acts on:

    run.cancel               people want it ended: `run.enter("CANCELING")`, remove the pods, end every task, then `run.enter("FAILED")`, as the
                             real server does. The API shows CANCELING from the moment of the request
    run.retry                a failed or cancelled run shall go on: it is RUNNING again, what FAILED is the engine's to start anew, what
                             SUCCEEDED stays. Call store.retry_begun(run_id) when the tasks are reset
"""

from __future__ import annotations

import json
import random
import string
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar

import pymysql

FINAL = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
# How the real server writes "not yet" for a run and for a task.
RUN_NOT_FINISHED = "1970-01-01T00:00:00Z"
TASK_NOT_FINISHED = "0001-01-01T00:00:00Z"

Json = dict[str, Any]


class Conflict(Exception):
    """Something of that name or id is there already."""


class Unavailable(Exception):
    """The database does not answer."""


def now() -> str:
    """The time as the API writes it."""
    return stamp(datetime.now(UTC))


def stamp(time: datetime) -> str:
    """A time as the API writes it: UTC, whole seconds."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_id() -> str:
    """An id for anything."""
    return str(uuid.uuid4())


def workflow_name(pipeline: str) -> str:
    """The name of a run's Kubernetes objects: the pipeline's and five letters, as the real server lets Kubernetes make it."""
    return f"{pipeline[:50]}-{''.join(random.choices(string.ascii_lowercase + string.digits, k=5))}"


@dataclass
class Definition:
    """What people create and the engine only reads. `name` is unique within `parent`."""

    kind: ClassVar[str]
    id: str = field(default_factory=new_id)
    parent: str = ""
    name: str = ""
    display_name: str = ""
    description: str = ""
    created_at: str = field(default_factory=now)


@dataclass
class Pipeline(Definition):
    """A name with versions."""

    kind = "pipeline"
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Version(Definition):
    """One compiled pipeline; its parent is the pipeline's id."""

    kind = "version"
    pipeline_spec: Json = field(default_factory=dict)
    platform_spec: Json = field(default_factory=dict)
    code_source_url: str = ""
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Experiment(Definition):
    """A group of runs."""

    kind = "experiment"
    storage_state: str = "AVAILABLE"
    last_run_created_at: str = ""


@dataclass
class RecurringRun(Definition):
    """A schedule. Its name need not be unique, so `name` is its id."""

    kind = "recurring"
    experiment_id: str = ""
    # Of its Kubernetes object and, with a number, of its runs.
    workflow: str = ""
    pipeline_spec: Json = field(default_factory=dict)
    platform_spec: Json = field(default_factory=dict)
    pipeline_version_reference: Json = field(default_factory=dict)
    runtime_config: Json = field(default_factory=dict)
    service_account: str = ""
    max_concurrency: int = 1
    no_catchup: bool = False
    trigger: Json = field(default_factory=dict)
    enabled: bool = True
    updated_at: str = field(default_factory=now)
    # The last moment of the schedule that was dealt with, by a run or by skipping it.
    last_scheduled: str = ""
    triggered: int = 0


@dataclass
class Run:
    """One execution of a pipeline. The second half is the engine's."""

    run_id: str = field(default_factory=new_id)
    experiment_id: str = ""
    display_name: str = ""
    description: str = ""
    # Of its pods and other Kubernetes objects, for example contract-happy-kmjm8.
    workflow: str = ""
    storage_state: str = "AVAILABLE"
    service_account: str = "pipeline-runner"
    # The compiled pipeline, whatever it came from; platform_spec is {} or {"platforms": {"kubernetes": {"deploymentSpec": ...}}}.
    pipeline_spec: Json = field(default_factory=dict)
    platform_spec: Json = field(default_factory=dict)
    pipeline_version_reference: Json = field(default_factory=dict)
    # {"parameters": {...}, "pipeline_root": "..."}, both optional; defaults of the pipeline are not filled in.
    runtime_config: Json = field(default_factory=dict)
    recurring_run_id: str = ""
    created_at: str = field(default_factory=now)
    scheduled_at: str = field(default_factory=now)
    # When the request was made, else "".
    cancel: str = ""
    retry: str = ""

    state: str = "PENDING"
    state_history: list[Json] = field(default_factory=list)
    finished_at: str = ""
    error: Json = field(default_factory=dict)
    engine: Json = field(default_factory=dict)

    @property
    def final(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state in FINAL

    def enter(self, state: str, at: str = "") -> None:
        """Change the state; the first entry of a state is kept."""
        if not self.state_history or self.state_history[-1]["state"] != state:
            self.state_history.append({"update_time": at or now(), "state": state})
        self.state = state
        self.finished_at = (at or now()) if state in FINAL else ""


@dataclass
class Task:
    """One node of a run as people see it: a container, a DAG, an iteration, a driver."""

    run_id: str
    display_name: str
    task_id: str = field(default_factory=new_id)
    create_time: str = field(default_factory=now)
    start_time: str = field(default_factory=now)
    end_time: str = ""
    state: str = ""
    state_history: list[Json] = field(default_factory=list)
    error: Json = field(default_factory=dict)
    pods: list[str] = field(default_factory=list)
    # Whether the API shows it; the engine may keep others.
    shown: bool = True
    state_json: Json = field(default_factory=dict)

    def enter(self, state: str, at: str = "") -> None:
        """Change the state; the first entry of a state is kept."""
        if not self.state_history or self.state_history[-1]["state"] != state:
            self.state_history.append({"update_time": at or now(), "state": state})
        self.state = state
        self.end_time = (at or now()) if state in FINAL else ""


SCHEMA = (
    """CREATE TABLE IF NOT EXISTS definitions (kind VARCHAR(16) NOT NULL, id VARCHAR(64) NOT NULL, parent VARCHAR(64) NOT NULL,
       name VARCHAR(255) NOT NULL, document LONGTEXT NOT NULL, PRIMARY KEY (kind, id), UNIQUE (kind, parent, name))""",
    """CREATE TABLE IF NOT EXISTS runs (id VARCHAR(64) NOT NULL PRIMARY KEY, experiment_id VARCHAR(64) NOT NULL,
       recurring_run_id VARCHAR(64) NOT NULL, created_at VARCHAR(20) NOT NULL, storage_state VARCHAR(16) NOT NULL,
       cancel VARCHAR(20) NOT NULL, retry VARCHAR(20) NOT NULL, state VARCHAR(16) NOT NULL, document LONGTEXT NOT NULL,
       progress LONGTEXT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS tasks (id VARCHAR(64) NOT NULL PRIMARY KEY, run_id VARCHAR(64) NOT NULL, position INTEGER NOT NULL,
       document LONGTEXT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS cache (id VARCHAR(128) NOT NULL PRIMARY KEY, document LONGTEXT NOT NULL)""",
)
# Half of a run each, as JSON; the other columns are those that either side changes or selects by.
COLUMNS = ("storage_state", "cancel", "retry", "state")
PROGRESS = ("state_history", "finished_at", "error", "engine")

D = TypeVar("D", bound=Definition)
T = TypeVar("T")
Row = Sequence[Any]


class Store:
    """The tables behind one connection that threads take in turn."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        """Use connections to a database that has the tables; `connect` makes one (PyMySQL's, with autocommit)."""
        self.changed = threading.Event()
        self._connect = connect
        self._connection: Any = None
        # Whoever reads something to write it again holds this meanwhile.
        self.lock = threading.RLock()

    def prepare(self) -> None:
        """Create the tables that are missing."""
        for statement in SCHEMA:
            self._execute(statement)

    # Definitions

    def add(self, *items: Definition) -> None:
        """Keep new things, all or none; `Conflict` if a name is taken."""

        def insert(cursor: Any) -> None:
            cursor.execute("BEGIN")
            try:
                for item in items:
                    cursor.execute(
                        "INSERT INTO definitions (kind, id, parent, name, document) VALUES (%s, %s, %s, %s, %s)",
                        (item.kind, item.id, item.parent, item.name, _dump(asdict(item))),
                    )
            except pymysql.err.IntegrityError:
                cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")

        self._with_cursor(insert)

    def update(self, item: Definition) -> None:
        """Write a thing that is there."""
        self._execute(
            "UPDATE definitions SET document = %s WHERE kind = %s AND id = %s", _dump(asdict(item)), item.kind, item.id
        )

    def get(self, kind: type[D], id: str) -> D | None:
        """A thing by its id."""
        rows = self._rows("SELECT document FROM definitions WHERE kind = %s AND id = %s", kind.kind, id)
        return _load(kind, rows[0][0]) if rows else None

    def all(self, kind: type[D], parent: str | None = None) -> list[D]:
        """All things of a kind, or of a parent."""
        if parent is None:
            rows = self._rows("SELECT document FROM definitions WHERE kind = %s", kind.kind)
        else:
            rows = self._rows("SELECT document FROM definitions WHERE kind = %s AND parent = %s", kind.kind, parent)
        return [_load(kind, row[0]) for row in rows]

    def remove(self, item: Definition) -> None:
        """Forget a thing, and what has it as parent."""
        self._execute("DELETE FROM definitions WHERE kind = %s AND id = %s", item.kind, item.id)
        self._execute("DELETE FROM definitions WHERE parent = %s", item.id)

    # Runs

    def add_run(self, run: Run) -> None:
        """Keep a new run and tell the engine."""
        document = {name: value for name, value in asdict(run).items() if name not in (*COLUMNS, *PROGRESS)}
        self._execute(
            "INSERT INTO runs (id, experiment_id, recurring_run_id, created_at, storage_state, cancel, retry, state, document, progress) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            run.run_id, run.experiment_id, run.recurring_run_id, run.created_at, run.storage_state, run.cancel, run.retry, run.state,
            _dump(document), _progress(run),
        )  # fmt: skip
        self.changed.set()

    def run(self, run_id: str) -> Run | None:
        """A run by its id."""
        return next(iter(self._runs("id = %s", run_id)), None)

    def list_runs(self) -> list[Run]:
        """Every run, oldest first."""
        return self._runs("1 = 1")

    def list_active_runs(self) -> list[Run]:
        """The runs that the engine has to drive, oldest first."""
        return self._runs(f"state NOT IN ({', '.join(['%s'] * len(FINAL))})", *sorted(FINAL))

    def runs_of(self, recurring_run_id: str) -> list[Run]:
        """The runs that a schedule started, oldest first."""
        return self._runs("recurring_run_id = %s", recurring_run_id)

    def save_run(self, run: Run) -> None:
        """Write the engine's half of a run."""
        self._execute("UPDATE runs SET state = %s, progress = %s WHERE id = %s", run.state, _progress(run), run.run_id)

    def set_storage_state(self, run_id: str, storage_state: str) -> None:
        """Archive a run or bring it back."""
        self._execute("UPDATE runs SET storage_state = %s WHERE id = %s", storage_state, run_id)

    def cancel_run(self, run_id: str) -> None:
        """Ask the engine to end a run."""
        self._execute("UPDATE runs SET cancel = %s WHERE id = %s", now(), run_id)
        self.changed.set()

    def retry_run(self, run: Run) -> None:
        """Let a final run go on: nobody else writes it until the engine sees it."""
        run.enter("RUNNING")
        self._execute(
            "UPDATE runs SET cancel = '', retry = %s, state = %s, progress = %s WHERE id = %s",
            now(), run.state, _progress(run), run.run_id,
        )  # fmt: skip
        self.changed.set()

    def retry_begun(self, run_id: str) -> None:
        """The engine has reset what shall run again."""
        self._execute("UPDATE runs SET retry = '' WHERE id = %s", run_id)

    def remove_run(self, run_id: str) -> None:
        """Forget a run and its tasks; the engine removes its pods."""
        self._execute("DELETE FROM runs WHERE id = %s", run_id)
        self._execute("DELETE FROM tasks WHERE run_id = %s", run_id)
        self.changed.set()

    # Tasks

    def tasks(self, run_id: str) -> list[Task]:
        """The tasks of a run, in the order they were made."""
        rows = self._rows("SELECT document FROM tasks WHERE run_id = %s ORDER BY position, id", run_id)
        return [_load(Task, row[0]) for row in rows]

    def save_task(self, task: Task) -> None:
        """Insert or update one task."""
        with self.lock:
            document = _dump(asdict(task))
            if self._rows("SELECT id FROM tasks WHERE id = %s", task.task_id):
                self._execute("UPDATE tasks SET document = %s WHERE id = %s", document, task.task_id)
            else:
                self._execute(
                    "INSERT INTO tasks (id, run_id, position, document) SELECT %s, id, (SELECT COUNT(*) FROM tasks t WHERE t.run_id = runs.id), %s "
                    "FROM runs WHERE id = %s",
                    task.task_id, document, task.run_id,
                )  # fmt: skip

    def remove_task(self, task_id: str) -> None:
        """Forget one task."""
        self._execute("DELETE FROM tasks WHERE id = %s", task_id)

    # Cache

    def cached(self, key: str) -> Json | None:
        """What was kept under a fingerprint of at most 128 characters."""
        rows = self._rows("SELECT document FROM cache WHERE id = %s", key)
        value: Json | None = json.loads(rows[0][0]) if rows else None
        return value

    def cache(self, key: str, value: Json) -> None:
        """Keep a value under a fingerprint; a later one replaces it."""
        self._execute("REPLACE INTO cache (id, document) VALUES (%s, %s)", key, _dump(value))

    # The database

    def leads(self) -> bool:
        """Whether this process drives runs: it holds a lock that the server drops with the connection."""
        return bool(self._rows("SELECT GET_LOCK('slipway-kfp-engine', 0)")[0][0])

    def _runs(self, where: str, *values: str) -> list[Run]:
        rows = self._rows(
            f"SELECT document, progress, {', '.join(COLUMNS)} FROM runs WHERE {where} ORDER BY created_at, id", *values
        )
        return [
            Run(**json.loads(document), **json.loads(progress), **dict(zip(COLUMNS, columns, strict=True)))
            for document, progress, *columns in rows
        ]

    def _execute(self, statement: str, *values: object) -> None:
        self._with_cursor(lambda cursor: cursor.execute(statement, values))

    def _rows(self, statement: str, *values: object) -> Sequence[Row]:
        def read(cursor: Any) -> Sequence[Row]:
            cursor.execute(statement, values)
            rows: Sequence[Row] = cursor.fetchall()
            return rows

        return self._with_cursor(read)

    def _with_cursor(self, use: Callable[[Any], T]) -> T:
        """Use the connection; one that was lost since its last use is made again, once."""
        with self.lock:
            fresh = self._connection is None
            try:
                if fresh:
                    self._connection = self._connect()
                with self._connection.cursor() as cursor:
                    return use(cursor)
            except pymysql.err.IntegrityError as error:
                raise Conflict(str(error)) from error
            except (pymysql.err.OperationalError, pymysql.err.InterfaceError, OSError) as error:
                self._connection = None
                if fresh:
                    raise Unavailable(str(error)) from error
            return self._with_cursor(use)


def mysql(host: str, port: int, user: str, password: str, database: str) -> Store:
    """The store in a MySQL server, with database and tables made."""

    def connect() -> Any:
        return pymysql.connect(
            host=host, port=port, user=user, password=password, database=database, charset="utf8mb4", autocommit=True,
            connect_timeout=5, read_timeout=30, write_timeout=30,
        )  # fmt: skip

    try:
        # Names are compared byte by byte, and the real server makes its database as well.
        with (
            pymysql.connect(host=host, port=port, user=user, password=password, connect_timeout=5) as server,
            server.cursor() as cursor,
        ):
            cursor.execute(f"CREATE DATABASE IF NOT EXISTS `{database}` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
    except pymysql.err.OperationalError as error:
        raise Unavailable(str(error)) from error
    store = Store(connect)
    store.prepare()
    return store


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _load(kind: type[T], document: str) -> T:
    return kind(**json.loads(document))


def _progress(run: Run) -> str:
    return _dump({name: getattr(run, name) for name in PROGRESS})
