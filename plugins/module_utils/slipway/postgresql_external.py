"""Whether a PostgreSQL that somebody else runs can be used: what its Secrets say, and what it answers. For modules on the controller."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import psycopg
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.port_forward import service_of
from ansible.module_utils.slipway.postgresql import CA_PATH, KEYS
from psycopg.conninfo import conninfo_to_dict

OLDEST = 130000
# What clients or servers say, and what it means.
_HINTS = (
    (r"server does not support SSL", "the server offers no TLS: switch it on there (ssl = on)"),
    (r"certificate verify failed", "another authority has signed the server's certificate: put that one's into ca.crt"),
    (r"does not match host name", "the server's certificate is not one for that host"),
    (r"password authentication failed", "the password is not that of the user, or there is no such user"),
    (r'database "[^"]*" does not exist', "make the database, owned by the user"),
    (r"no pg_hba\.conf entry", "the server's pg_hba.conf lets this user in from elsewhere only, or to another database"),
    (r"could not translate host name|failed to resolve host", "no such name: is host the name of the server or its Service?"),
    (r"Connection refused", "nobody listens there: is the server running, is port right?"),
    (r"timeout expired|timed out|ConnectionTimeout", "nothing answers: does a firewall or a NetworkPolicy refuse it?"),
)  # fmt: skip
# Opens a way to (namespace, service, port) of the cluster, as an address.
Way = Callable[[str, str, int], AbstractContextManager[str]]


def secret_faults(values: Mapping[str, str]) -> list[str]:
    """What is wrong with the content of a consumer's Secret, without any of its values that is secret."""
    if missing := [key for key in KEYS if not values.get(key)]:
        return [f"it has no {', no '.join(missing)}"]
    faults = [
        f"{key} ends in a line break; make it from a file without one (printf %s ... > file)"
        for key in KEYS
        if key != "ca.crt" and values[key] != values[key].strip()
    ]
    if not values["port"].strip().isdigit():
        faults.append(f"port is {values['port']!r}, no number")
    if "-----BEGIN CERTIFICATE-----" not in values["ca.crt"]:
        faults.append("ca.crt is no certificate in PEM form")
    if faults:
        return faults
    try:
        said = conninfo_to_dict(values["uri"])
    except psycopg.ProgrammingError:
        return ["uri is none that a client of PostgreSQL reads"]
    pairs = {"host": "host", "port": "port", "database": "dbname", "username": "user", "password": "password"}
    different = [key for key, name in pairs.items() if str(said.get(name, "")) != values[key]]
    if different:
        faults.append(f"uri says something else than {', '.join(different)}")
    if (said.get("sslmode"), said.get("sslrootcert")) != ("verify-full", CA_PATH):
        faults.append(f"uri must end in ?sslmode=verify-full&sslrootcert={CA_PATH}")
    return faults


def answer_faults(values: Mapping[str, str], way: Way, timeout: int) -> list[str]:
    """What is wrong with the server's answer to a consumer, as a client that checks everything sees it."""
    service = service_of(values["host"])
    place = f"{values['host']}:{values['port']}, database {values['database']}, user {values['username']}"
    with tempfile.NamedTemporaryFile("w", suffix=".crt") as authority:
        authority.write(values["ca.crt"])
        authority.flush()
        try:
            opened = way(*service, int(values["port"])) if service else nullcontext("")
            with (
                opened as address,
                psycopg.connect(
                    host=values["host"],
                    # The name is what the certificate is compared with, wherever the way there begins.
                    hostaddr=address.rpartition(":")[0] or None,
                    port=int(address.rpartition(":")[2] if address else values["port"]),
                    dbname=values["database"],
                    user=values["username"],
                    password=values["password"],
                    sslmode="verify-full",
                    sslrootcert=authority.name,
                    connect_timeout=timeout,
                ) as connection,
            ):
                return [f"{place}: {fault}" for fault in _inside(connection)]
        except psycopg.Error as error:
            said = " ".join(str(error).split())
            hints = [hint for pattern, hint in _HINTS if re.search(pattern, f"{type(error).__name__} {said}")]
            return [f"{place}: {'; '.join(hints[:1]) or 'it refuses'} ({said})"]
        except SlipwayError as error:
            return [f"{place}: {error}"]


def _inside(connection: psycopg.Connection[tuple[object, ...]]) -> list[str]:
    if connection.info.server_version < OLDEST:
        return [f"PostgreSQL {connection.info.server_version // 10000} is too old; at least {OLDEST // 10000}"]
    row = connection.execute("SELECT has_schema_privilege('public', 'CREATE')").fetchone()
    return [] if row and row[0] else ["the user may make no tables in schema public: let it own the database"]
