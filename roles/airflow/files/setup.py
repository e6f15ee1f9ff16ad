"""Makes the user admin and the declared pools, or brings them to what is declared. Runs in a Job of the chart, in Airflow's own environment."""

import json
import os

from airflow.models.pool import Pool
from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
from airflow.utils.db import check_migrations
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
print("user and pools are as declared")
