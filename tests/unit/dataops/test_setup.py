"""What the role's Job does in Airflow's database: user, pools, and triggers that were encrypted with a key that is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from cryptography.fernet import Fernet

from .conftest import PROJECT, SETTINGS

SETUP = (PROJECT / "roles/airflow/files/setup.py").read_text()
# A trigger of an asset's watcher and one of a task that waits, as the programs leave them.
FILL = """
from airflow.models.asset import AssetModel, AssetWatcherModel
from airflow.models.trigger import Trigger
from airflow.utils.session import create_session

with create_session() as session:
    triggers = [Trigger("some.Trigger", {"number": number}) for number in (1, 2)]
    asset = AssetModel(name="drops", uri="drops", group="asset")
    session.add_all([asset, *triggers])
    session.flush()
    session.add(AssetWatcherModel(name="watcher", asset_id=asset.id, trigger_id=triggers[0].id))
"""
COUNT = """
import json
from airflow.models.asset import AssetModel, AssetWatcherModel
from airflow.models.pool import Pool
from airflow.models.trigger import Trigger
from airflow.utils.session import create_session
from sqlalchemy import func, select

with create_session() as session:
    count = [session.scalar(select(func.count()).select_from(model)) for model in (Trigger, AssetWatcherModel, AssetModel)]
    print(json.dumps([count, Pool.get_pool("training").slots]))
"""


def test_what_a_lost_key_has_encrypted_is_taken_out(tmp_path: Path) -> None:
    """Only that: with the key it stays; without it asset and pool stay, and the watcher can be made anew."""
    environment = {
        **os.environ,
        **SETTINGS,
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__AUTH_MANAGER": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager",
        "AIRFLOW__CORE__FERNET_KEY": Fernet.generate_key().decode(),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path}/airflow.db",
        "ADMIN_PASSWORD": "of-a-test",
        "POOLS": json.dumps([{"name": "training", "slots": 1}]),
    }

    def run(*words: str) -> str:
        command = [sys.executable, *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""

    run("-m", "airflow", "db", "migrate")
    run("-c", FILL)
    run("-c", SETUP)
    assert json.loads(run("-c", COUNT)) == [[2, 1, 1], 1]
    environment["AIRFLOW__CORE__FERNET_KEY"] = Fernet.generate_key().decode()
    run("-c", SETUP)
    assert json.loads(run("-c", COUNT)) == [[0, 0, 1], 1]
