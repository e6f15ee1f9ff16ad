"""Databases and roles of PostgreSQL's consumers: each has one database of its own and may connect to that one only.

A database belongs to the role of its name. That one logs in, or a second one does that acts as the first: by turns, so that another password
can be there before the former one goes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json
from ansible.module_utils.slipway.pod_exec import pod_exec

# What a consumer's Secret has.
KEYS = ("host", "port", "database", "username", "password", "uri", "ca.crt")
# Where consumers mount the key ca.crt of their Secret, by convention: the URI names it.
CA_PATH = "/etc/slipway/postgresql/ca.crt"
# Only members of this role come in through the network (pg_hba.conf).
GROUP = "slipway_consumers"
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
# Names of the server's own, and of ours.
_TAKEN = ("postgres", "template0", "template1", "public", "none", "user", GROUP)
_ITERATIONS = 4096
_VERIFIER = re.compile(r"SCRAM-SHA-256\$(\d+):([^$]+)\$([^:]+):(.+)")
# Passwords come as verifiers; even these belong into no log.
_QUIET = "SET log_statement = 'none'; SET log_min_error_statement = 'panic'; SET log_min_duration_statement = -1;\n"
_STATE = f"""
SELECT json_build_object(
  'roles', (SELECT coalesce(json_object_agg(rolname, json_build_object('password', rolpassword, 'plain', rolcanlogin AND NOT
    (rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls), 'acts_as', (SELECT pg_get_userbyid(roleid)
    FROM pg_auth_members JOIN pg_db_role_setting ON setrole = member AND setdatabase = 0
    WHERE member = pg_authid.oid AND 'role=' || pg_get_userbyid(roleid) = ANY (setconfig)))), '{{}}') FROM pg_authid WHERE rolname !~ '^pg_'),
  'members', (SELECT coalesce(json_agg(pg_get_userbyid(member)), '[]') FROM pg_auth_members
    WHERE pg_get_userbyid(roleid) = '{GROUP}'),
  'databases', (SELECT coalesce(json_object_agg(datname, json_build_object('owner', pg_get_userbyid(datdba), 'open',
    has_database_privilege('public', oid, 'CONNECT'))), '{{}}') FROM pg_database));
"""

_PSQL = ["psql", "--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--dbname=postgres", "--file=-"]
_PSQL += ["--set=ON_ERROR_STOP=1", "--set=VERBOSITY=terse"]

# Runs SQL as the superuser and returns what it printed.
Sql = Callable[[str], str]


def sql_in_pod(kubectl: str, kubeconfig: str, namespace: str, pod: str, container: str, timeout: float) -> Sql:
    """The way to the superuser, who is known in the server's own container only; `timeout` is in seconds for one call."""

    def sql(text: str) -> str:
        try:
            return pod_exec(kubectl, kubeconfig, namespace, f"pod/{pod}", container, _PSQL, stdin=text, timeout=timeout)
        except SlipwayError as error:
            raise SlipwayError(hide(str(error))) from None

    return sql


@dataclass(frozen=True)
class Consumer:
    """Someone with a database, and the role that logs in, by default the database's own; while `rotating`, the other one may, too."""

    name: str
    password: str = field(repr=False)
    username: str = ""
    rotating: bool = False

    @property
    def database(self) -> str:
        return identifier(self.name)

    @property
    def login(self) -> str:
        return self.username or self.database


@dataclass(frozen=True)
class Change:
    """Something to do, how a person calls it, and in SQL."""

    text: str
    sql: str = field(repr=False)


def identifier(name: str) -> str:
    """The name of a consumer's database and role."""
    return name.replace("-", "_")


def other_login(login: str) -> str:
    """The role that logs in next: a consumer has two, by turns."""
    # Names of consumers have no dot.
    return login.removesuffix(".2") if login.endswith(".2") else f"{login}.2"


def login_of(name: str, username: str) -> str:
    """The role that a consumer's Secret names, if it is one of its two; else the first."""
    own = identifier(name)
    return username if username == other_login(own) else own


def problems(names: Sequence[str]) -> list[str]:
    """What is wrong with the consumers' names."""
    found = [
        f"{name!r} is no name: small letters, digits and hyphens in between, at most 40"
        for name in names
        if not _NAME.fullmatch(name)
    ]
    found += [f"{name!r} is a name of PostgreSQL's own" for name in names if identifier(name) in _TAKEN]
    found += [f"{name!r} is a name of PostgreSQL's own: it begins with pg" for name in names if name.startswith("pg-")]
    return found + [f"{name!r} is listed twice" for name in sorted(set(names)) if names.count(name) > 1]


def uri(host: str, port: str, name: str, password: str, username: str = "") -> str:
    """How programs of a consumer connect; it works where CA_PATH is mounted."""
    login = f"{quote(username or identifier(name), safe='')}:{quote(password, safe='')}"
    return f"postgresql://{login}@{host}:{port}/{identifier(name)}?sslmode=verify-full&sslrootcert={CA_PATH}"


def verifier(password: str, salt: bytes | None = None, iterations: int = _ITERATIONS) -> str:
    """What the server keeps of a password (RFC 5803), so that it never sees the password itself.

    Raises:
        SlipwayError: the password has characters that clients would normalize (RFC 4013).
    """
    if not password or not all(" " <= character <= "~" for character in password):
        raise SlipwayError("a password must be printable ASCII, and not empty")
    salt = secrets.token_bytes(16) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    words = [base64.b64encode(each).decode() for each in (salt, client, server)]
    return f"SCRAM-SHA-256${iterations}:{words[0]}${words[1]}:{words[2]}"


def matches(password: str, kept: str | None) -> bool:
    """Whether what the server keeps was made of this password."""
    found = _VERIFIER.fullmatch(kept or "")
    if not found:
        return False
    again = verifier(password, base64.b64decode(found[2]), int(found[1]))
    return hmac.compare_digest(again, kept or "")


def read_state(sql: Sql) -> Json:
    """What the server has: roles, members of GROUP, databases. Raises SlipwayError."""
    said = sql(_QUIET + _STATE)
    try:
        state = json.loads(said)
    except ValueError:
        # Not what it said: verifiers are in it.
        raise SlipwayError("PostgreSQL's answer to what it has is no JSON") from None
    if not isinstance(state, dict):
        raise SlipwayError("PostgreSQL's answer to what it has is no object")
    return state


NOTHING: Json = {"roles": {}, "members": [], "databases": {}}


def plan(state: Json, consumers: Sequence[Consumer]) -> list[Change]:
    """The changes that bring the server to what `consumers` say, in their order. Databases and roles are never removed."""
    roles: dict[str, Any] = state["roles"]
    changes: list[Change] = []
    if GROUP not in roles:
        changes.append(Change(f"role {GROUP} made", f'CREATE ROLE "{GROUP}" NOLOGIN'))
    for consumer in consumers:
        changes += plan_logins(state, consumer)
        changes += _plan_database(consumer.database, state["databases"].get(consumer.database))
    for name in sorted(set(state["members"]) - {consumer.database for consumer in consumers}):
        users = f"'{_quoted(name)}', '{_quoted(other_login(name))}'"
        end = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename IN ({users})"
        sql = f'REVOKE "{GROUP}" FROM "{_named(name)}"; {end}'
        changes.append(Change(f"role {name} locked out: it is no consumer any more; its database stays", sql))
    return changes


def plan_logins(state: Json, consumer: Consumer) -> list[Change]:
    """The same for one consumer's two roles."""
    owner, second = consumer.database, other_login(consumer.database)
    roles: dict[str, Any] = state["roles"]
    changes = _plan_role(consumer, owner, roles.get(owner))
    if owner not in state["members"]:
        changes.append(Change(f"role {owner} let in", f'GRANT "{GROUP}" TO "{owner}"'))
    if second in roles or consumer.login == second:
        changes += _plan_role(consumer, second, roles.get(second))
    if consumer.login == second and (roles.get(second) or {}).get("acts_as") != owner:
        # So all that it makes belongs to the first one.
        sql = f'GRANT "{owner}" TO "{second}"; ALTER ROLE "{second}" SET role = "{owner}"'
        changes.append(Change(f"role {second} acts as {owner}", sql))
    return changes


def _plan_role(consumer: Consumer, name: str, found: Json | None) -> list[Change]:
    attributes = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
    current = name == consumer.login
    if found is None:
        password = f" PASSWORD '{verifier(consumer.password)}'" if current else ""
        return [Change(f"role {name} made", f'CREATE ROLE "{name}" {attributes}{password}')]
    changes: list[Change] = []
    if not found["plain"]:
        changes.append(Change(f"role {name}: attributes set", f'ALTER ROLE "{name}" {attributes}'))
    if current and not matches(consumer.password, found["password"]):
        sql = f"ALTER ROLE \"{name}\" PASSWORD '{verifier(consumer.password)}'"
        changes.append(Change(f"role {name}: password set", sql))
    if not current and found["password"] and not consumer.rotating:
        changes.append(Change(f"role {name}: former password removed", f'ALTER ROLE "{name}" PASSWORD NULL'))
    return changes


def _plan_database(name: str, found: Json | None) -> list[Change]:
    changes: list[Change] = []
    if found is None:
        changes.append(Change(f"database {name} made", f'CREATE DATABASE "{name}" OWNER "{name}" TEMPLATE template0'))
    elif found["owner"] != name:
        changes.append(Change(f"database {name}: owner set", f'ALTER DATABASE "{name}" OWNER TO "{name}"'))
    if found is None or found["open"]:
        sql = f'REVOKE CONNECT, TEMPORARY ON DATABASE "{name}" FROM PUBLIC'
        changes.append(Change(f"database {name} closed to others", sql))
    return changes


def apply(sql: Sql, changes: Sequence[Change]) -> None:
    """Make the changes, one after the other. Raises SlipwayError at the first that fails; the next run goes on there."""
    if changes:
        # Not one transaction: databases are made outside of any.
        sql(_QUIET + "".join(f"{change.sql};\n" for change in changes))


def _named(name: str) -> str:
    return name.replace('"', '""')


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def hide(text: str) -> str:
    """A message of psql without verifiers."""
    return re.sub(r"SCRAM-SHA-256\$[^'\s]*", "(a verifier)", text)
