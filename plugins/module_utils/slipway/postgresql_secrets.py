"""The Secrets in which PostgreSQL's consumers find how to connect."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, RemovingKube, items
from ansible.module_utils.slipway.mirror import Mirror, mirror
from ansible.module_utils.slipway.objects import MANAGED_BY
from ansible.module_utils.slipway.postgresql import identifier, login_of, uri
from ansible.module_utils.slipway.secrets import Key, ensure, path

# Marks these Secrets, with the consumer's name.
LABEL = "slipway/postgresql-consumer"
PASSWORD_LENGTH = 40
# At a Secret while another login is handed over: the former one.
FORMER = "slipway/postgresql-former"


def secret_name(consumer: str) -> str:
    """The name of a consumer's Secret."""
    return f"postgresql-{consumer}"


def former(secret: Json) -> str:
    """The login that may still be in use; empty where none is handed over."""
    return str((secret["metadata"].get("annotations") or {}).get(FORMER) or "")


@dataclass
class Credentials:
    """Brings a cluster's Secrets to a list of consumers; `authority` is the Secret of the server's certificate."""

    kube: RemovingKube
    namespace: str
    host: str
    port: int
    authority: str
    check: bool = False
    changes: list[str] = field(default_factory=list)

    def apply(self, consumers: Sequence[str]) -> list[str]:
        """Make what is missing, complete what is there, remove what nobody is to have any more. Raises SlipwayError."""
        for consumer in consumers:
            self._secret(consumer)
        for item in items(self.kube, path(self.namespace), labelSelector=LABEL):
            of = item["metadata"]["labels"][LABEL]
            if of not in consumers:
                name = item["metadata"]["name"]
                self.changes.append(f"Secret {self.namespace}/{name} removed: {of} is no consumer any more")
                if not self.check:
                    self.kube.delete(path(self.namespace, name))
        return self.changes

    def _secret(self, consumer: str) -> None:
        name, where = secret_name(consumer), f"Secret {self.namespace}/{secret_name(consumer)}"
        labels = {**MANAGED_BY, LABEL: consumer}
        made = ensure(self.kube, self.namespace, name, [Key("password", PASSWORD_LENGTH)], labels, check=self.check)
        if made.changed:
            self.changes.append(f"{where}: {', '.join(made.added) or 'labels'} set")
        secret = self.kube.get(path(self.namespace, name))
        if secret is None:
            return
        data = secret.get("data") or {}
        try:
            password, username = (base64.b64decode(data.get(key) or "").decode() for key in ("password", "username"))
        except ValueError:
            raise SlipwayError(f"{where}: its password or username is no text") from None
        if not password and self.check:
            return
        # One of the two that are used by turns.
        login = login_of(consumer, username)
        wanted = Mirror(
            namespace=self.namespace,
            name=name,
            source_namespace=self.namespace,
            source_name=self.authority,
            keys={"ca.crt": "ca.crt"},
            values={
                "host": self.host,
                "port": str(self.port),
                "database": identifier(consumer),
                "username": login,
                "uri": uri(self.host, str(self.port), consumer, password, login),
            },
        )
        done = mirror(self.kube, wanted, self.check)
        if done.changed:
            self.changes.append(f"{where}: {', '.join(done.set)} set")
