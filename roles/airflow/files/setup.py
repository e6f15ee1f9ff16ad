"""Makes the user admin and the declared pools, or brings them to what is declared. Runs in a Job of the chart, in Airflow's own environment.

Where the key of what the database keeps encrypted was lost, triggers that nobody can read any more go: Airflow would stumble over them.
"""

import json
import os

from airflow.models.callback import Callback
from airflow.models.pool import Pool
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
from airflow.utils.db import check_migrations
from airflow.utils.session import create_session
from cryptography.fernet import InvalidToken
from sqlalchemy import delete, select, update
from werkzeug.security import check_password_hash

check_migrations(600)
password = os.environ["ADMIN_PASSWORD"]
with get_application_builder() as builder:
    manager = builder.sm
    user = manager.find_user("admin")
    if not user:
        user = manager.add_user("admin", "admin", "", "admin@localhost", manager.find_role("Admin"), password)
        assert user, "the user admin was not made; the reason is above"
    elif not check_password_hash(user.password, password):
        assert manager.reset_password(user.id, password), "the password of admin was not set; the reason is above"
for pool in json.loads(os.environ["POOLS"]):
    # A task that waits for a trigger still uses what the pool stands for.
    Pool.create_or_update_pool(pool["name"], pool["slots"], pool.get("description", ""), include_deferred=True)
with create_session() as session:
    for trigger in session.scalars(select(Trigger)).all():
        try:
            _ = trigger.kwargs
        except InvalidToken as error:
            # What waits for it is tried again. One that watches an asset is made anew when its DAG is read.
            Trigger.submit_failure(trigger.id, error, session=session)
            session.flush()
            for model in (TaskInstance, Callback):
                session.execute(update(model).where(model.trigger_id == trigger.id).values(trigger_id=None))
            session.execute(delete(Trigger).where(Trigger.id == trigger.id))
            print(f"trigger {trigger.id}, {trigger.classpath}: nobody can read it with today's key; taken out")
print("user and pools are as declared")
