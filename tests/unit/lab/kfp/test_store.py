"""The store: all or nothing, and a database that goes and comes back."""

from __future__ import annotations

import pymysql
import pytest

from tests.lab.kfp.kfp_server.store import Conflict, Pipeline, Run, Store, Task, Unavailable, Version
from tests.unit.lab.kfp import memory


class Faulty:
    """A database whose connections break when told to."""

    def __init__(self) -> None:
        self.connection = memory.Connection()
        self.broken = 0
        self.made = 0

    def connect(self) -> Faulty:
        """A new connection to the same database."""
        self.made += 1
        return self

    def cursor(self) -> memory.Cursor:
        """A cursor, or what PyMySQL raises over a lost connection."""
        if self.broken:
            self.broken -= 1
            raise pymysql.err.OperationalError(2006, "MySQL server has gone away")
        return self.connection.cursor()


def test_lost_connection_is_made_again_once() -> None:
    database = Faulty()
    store = Store(database.connect)
    store.prepare()
    run = Run(display_name="a")
    store.add_run(run)
    database.broken = 1
    assert store.run(run.run_id) == run
    assert database.made == 2
    database.broken = 2
    with pytest.raises(Unavailable, match="gone away"):
        store.run(run.run_id)
    assert store.run(run.run_id) == run


def test_things_are_added_together_or_not_at_all() -> None:
    store = memory.store()
    first = Pipeline(name="a")
    store.add(first, Version(name="1", parent=first.id))
    with pytest.raises(Conflict):
        store.add(Version(name="2", parent=first.id), Version(name="1", parent=first.id))
    assert [each.name for each in store.all(Version, first.id)] == ["1"]
    store.remove(first)
    assert store.all(Version) == []


def test_tasks_keep_their_order_and_what_the_engine_keeps_in_them() -> None:
    store = memory.store()
    run = Run()
    store.add_run(run)
    tasks = [Task(run.run_id, name, state_json={"pod": {"uid": name}}) for name in ("z", "a", "m")]
    for task in tasks:
        store.save_task(task)
    tasks[0].enter("RUNNING")
    tasks[0].enter("RUNNING")
    tasks[0].enter("SUCCEEDED")
    store.save_task(tasks[0])
    assert store.tasks(run.run_id) == tasks
    assert [each["state"] for each in tasks[0].state_history] == ["RUNNING", "SUCCEEDED"] and tasks[0].end_time
    store.remove_task(tasks[1].task_id)
    assert [task.display_name for task in store.tasks(run.run_id)] == ["z", "m"]


def test_cache() -> None:
    store = memory.store()
    assert store.cached("key") is None
    store.cache("key", {"a": 1})
    store.cache("key", {"a": 2})
    assert store.cached("key") == {"a": 2}
