"""Airflow's own settings, by its rules: what is defined here takes the place of the function of that name in airflow.settings."""

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine


def create_async_metadata_engine(address, *, connect_args, engine_args=None):
    # Airflow would take asyncpg, which fails on the parameters by which an address asks for TLS; psycopg reads them.
    url = make_url(address)
    if url.drivername == "postgresql+asyncpg":
        url = url.set(drivername="postgresql+psycopg")
    return create_async_engine(url, connect_args=connect_args, **(engine_args or {}))
