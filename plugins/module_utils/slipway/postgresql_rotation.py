"""Another login for a consumer of PostgreSQL while its clients go on: both are let in until nobody uses the former one.

A role has one password, so two roles take turns (see `postgresql`). What was begun is noted at the consumer's Secret, so that an interrupted
rotation is ended by the next one.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ansible.module_utils.slipway import postgresql, secrets
from ansible.module_utils.slipway.drain import listed
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, Kube, items
from ansible.module_utils.slipway.postgresql import Consumer, Sql, other_login, uri
from ansible.module_utils.slipway.postgresql_secrets import FORMER, PASSWORD_LENGTH, former, secret_name

INTERVAL = 0.5

# What is wrong with how the server answers somebody who has these values.
Faults = Callable[[Mapping[str, str]], list[str]]


@dataclass(frozen=True)
class Holder:
    """A consumer, where its pods run, and whether its role has already started them anew."""

    consumer: str
    namespaces: tuple[str, ...]
    cared_for: bool = False


@dataclass
class Rotation:
    """Rotates one consumer after the other. The methods raise SlipwayError; done again, they go on where they were."""

    kube: Kube
    sql: Sql
    namespace: str
    faults: Faults
    check: bool = False
    changes: list[str] = field(default_factory=list)
    passwords: set[str] = field(default_factory=set, repr=False)

    def begin(self, consumer: str) -> None:
        """Let a second login in, then have the Secret name that one."""
        where, secret = self._title(consumer), self._secret(consumer)
        if former(secret):
            return
        values = {key: base64.b64decode(value).decode() for key, value in (secret.get("data") or {}).items()}
        login = values.get("username", "")
        state = postgresql.read_state(self.sql)
        missing = [key for key in postgresql.KEYS if not values.get(key)]
        # Of an interrupted run there may be a second login that nobody has yet.
        if missing or postgresql.plan_logins(state, Consumer(consumer, values["password"], login, rotating=True)):
            raise SlipwayError(f"{where} does not say what PostgreSQL has; run site.yml first, which mends it")
        self.changes.append(f"consumer {consumer}: second login made, {where} has it")
        if self.check:
            return
        second = Consumer(consumer, secrets.Key("password", PASSWORD_LENGTH).make(), other_login(login), rotating=True)
        self.passwords.add(second.password)
        postgresql.apply(self.sql, postgresql.plan_logins(state, second))
        new = {"username": second.login, "password": second.password}
        if faults := self.faults({**values, **new}):
            raise SlipwayError(
                f"PostgreSQL does not let in the second login of {consumer}: {'; '.join(faults)}. The first one is in use, nothing is broken. "
                "Run site.yml, then this again"
            )
        new["uri"] = uri(values["host"], values["port"], consumer, second.password, second.login)
        self._write(consumer, login, new)

    def end(self, holder: Holder, timeout: float) -> None:
        """Take the former login's password away once nobody uses it; `timeout` is in seconds.

        Nobody does when it has no session and no pod of the consumer is about to end. One whose pods are not cared for must use the new one
        besides.
        """
        where, secret = self._title(holder.consumer), self._secret(holder.consumer)
        old = former(secret)
        if not old:
            return
        self.changes.append(f"consumer {holder.consumer}: former login locked")
        if self.check:
            return
        password = base64.b64decode(secret["data"]["password"]).decode()
        current = Consumer(holder.consumer, password, other_login(old))
        end = time.monotonic() + timeout
        while reason := self._in_use(holder, old, current.login):
            if time.monotonic() > end:
                raise SlipwayError(
                    f"consumer {holder.consumer}: {reason}, after {timeout:.0f} s. Both logins are let in, nothing is broken. Have it use what "
                    f"{where} says now, then run this again"
                )
            time.sleep(INTERVAL)
        postgresql.apply(self.sql, postgresql.plan_logins(postgresql.read_state(self.sql), current))
        self._write(holder.consumer, None, {})

    def _in_use(self, holder: Holder, old: str, new: str) -> str:
        """Why the former login cannot go yet; empty when it can."""
        ask = f"""SELECT coalesce(json_agg(json_build_array(usename, concat_ws(' at ', nullif(application_name, ''), host(client_addr)))), '[]')
          FROM pg_stat_activity WHERE usename IN ('{old}', '{new}');"""
        sessions = json.loads(self.sql(ask))
        found = {login: sorted({place for user, place in sessions if user == login}) for login in (old, new)}
        if found[old]:
            return f"the former login {old} is still used by {listed(found[old])}"
        ending = [
            f"{namespace}/{pod['metadata']['name']}"
            for namespace in holder.namespaces
            for pod in items(self.kube, f"/api/v1/namespaces/{namespace}/pods")
            if pod["metadata"].get("deletionTimestamp")
        ]
        if ending:
            return f"pods that may have the former login {old} have not ended: {listed(ending)}"
        return "" if holder.cared_for or found[new] else f"nobody uses the new login {new} yet"

    def _title(self, consumer: str) -> str:
        return f"Secret {self.namespace}/{secret_name(consumer)}"

    def _secret(self, consumer: str) -> Json:
        found = self.kube.get(secrets.path(self.namespace, secret_name(consumer)))
        if found is None:
            raise SlipwayError(f"there is no {self._title(consumer)}; run site.yml first, which makes it")
        return found

    def _write(self, consumer: str, noted: str | None, values: Mapping[str, str]) -> None:
        version = self._secret(consumer)["metadata"]["resourceVersion"]
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        metadata = {"resourceVersion": version, "annotations": {FORMER: noted}}
        body: Json = {"metadata": metadata, **({"data": data} if data else {})}
        self.kube.merge_patch(secrets.path(self.namespace, secret_name(consumer)), body)
