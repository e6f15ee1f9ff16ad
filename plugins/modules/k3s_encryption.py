#!/usr/bin/python
"""Ansible module: another key for the Secrets of a cluster at rest."""

from __future__ import annotations

DOCUMENTATION = r"""
module: k3s_encryption
short_description: Change the key that encrypts Secrets, and await what follows from it
description:
  - Runs on a server and asks it with C(k3s secrets-encrypt). Restarts nothing.
options:
  state:
    description:
      - C(rotated) makes a new key and waits until every Secret is encrypted with it.
      - C(settled) waits until all servers have the same keys, which they read when they are started.
    type: str
    choices: [rotated, settled]
    required: true
  since:
    description: When the rotation was begun, in seconds since 1970. A key that was made since then stays.
    type: float
    default: 0
  timeout:
    description: Seconds to wait at most. k3s writes about five Secrets a second anew.
    type: int
    default: 600
  record:
    description: The record of the rotation, in which the end of the re-encryption is noted.
    type: path
    default: /etc/rancher/k3s/rotation.json
attributes:
  check_mode:
    support: full
    description: Looks once, changes nothing and waits for nothing.
author: [Slipway]
"""

EXAMPLES = r"""
- name: Change the key
  k3s_encryption:
    state: rotated
    since: 1790000000
"""

RETURN = r"""
finished:
  description: When all Secrets were encrypted with the new key, in seconds since 1970. Servers that were started before must be restarted.
  returned: success
  type: float
"""

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.k3s import UNITS, command, epoch
from ansible.module_utils.slipway.k3s_rotation import RECORD, key_time, read_record, write_record

if TYPE_CHECKING:
    from collections.abc import Callable

KIND = "encryption-keys"
START, FINISHED = "start", "reencrypt_finished"
STATE_FILE = Path("/var/lib/rancher/k3s/server/cred/encryption-state.json")
INTERVAL_S = 1.0


@dataclass(frozen=True)
class Status:
    """What `k3s secrets-encrypt status` tells: whether Secrets are encrypted, with which key, at which stage of its change, and whether all servers agree."""

    enabled: bool
    key: str
    stage: str
    differs: str


def read_status(text: str) -> Status:
    """Read its JSON. Raises SlipwayError."""
    try:
        found: dict[str, Any] = json.loads(text)
        agree = found.get("hashmatch", False)
        return Status(
            bool(found.get("enable")),
            str(found.get("activekey", "")),
            str(found["stage"]),
            "" if agree else str(found.get("hasherror") or "the servers' keys differ"),
        )
    except (ValueError, KeyError, AttributeError) as error:
        raise SlipwayError(f"k3s secrets-encrypt status cannot be read: {error}") from error


def was_cut() -> bool:
    """Whether k3s was started since the stage was written, so that no re-encryption runs any more."""
    words = ["systemctl", "show", UNITS["server"], "--value", "-p", "ExecMainStartTimestampMonotonic"]
    started = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    return STATE_FILE.exists() and STATE_FILE.stat().st_mtime < epoch(started)


class Keys:
    """The keys of the server that runs here; waits until `timeout` seconds from now are over."""

    def __init__(
        self,
        timeout: float,
        k3s: Callable[..., str] = command,
        cut: Callable[[], bool] = was_cut,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._k3s, self._cut, self._clock, self._sleep = k3s, cut, clock, sleep
        self._timeout = timeout
        self._end = clock() + timeout

    def status(self) -> Status:
        """Ask once."""
        return read_status(self._k3s("secrets-encrypt", "status", "--output", "json"))

    def await_status(self, wanted: Callable[[Status], bool], what: str) -> Status:
        """Ask until it is as wanted; a server that does not answer for a while is asked again. Raises SlipwayError when time is over."""
        while True:
            try:
                status = self.status()
                if wanted(status):
                    return status
                last = f"stage {status.stage}{', ' if status.differs else ''}{status.differs}"
            except SlipwayError as error:
                last = str(error)
            if self._clock() >= self._end:
                raise SlipwayError(
                    f"After {self._timeout:g} s {what}: {last}. Next: journalctl -u k3s on this server; then run this again."
                )
            self._sleep(INTERVAL_S)

    def rotate(self, since: float, check: bool) -> bool:
        """Have a key that is newer than `since`, and all Secrets encrypted with it; return whether anything was changed, or would be."""
        status = self.status()
        if not status.enabled:
            raise SlipwayError(
                "Secrets are not encrypted on this cluster, so there is no key to change (option secrets-encryption of k3s)"
            )
        # Names of keys tell whole seconds.
        changed = key_time(status.key) < int(since)
        if changed and status.differs:
            raise SlipwayError(
                f"Not all servers have been restarted since the last change of keys: {status.differs}. Nothing was changed. Next: restart k3s on one "
                "server after the other (systemctl restart k3s), then run this again."
            )
        if check:
            return changed
        if changed:
            self._make_key(int(since))
        elif status.stage != FINISHED and self._cut():
            self._k3s("secrets-encrypt", "reencrypt", "--force")
            changed = True
        self.await_status(lambda now: now.stage == FINISHED, "not every Secret is encrypted with the new key")
        return changed

    def settle(self) -> None:
        """Wait until all servers have the same keys."""
        self.await_status(lambda now: not now.differs, "the servers do not have the same keys")

    def _make_key(self, since: int) -> None:
        try:
            self._k3s("secrets-encrypt", "rotate-keys")
        except SlipwayError:
            # With many Secrets the request ends before the work does.
            if key_time(self.status().key) < since:
                raise


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["rotated", "settled"], "required": True},
            "since": {"type": "float", "default": 0.0},
            "timeout": {"type": "int", "default": 600},
            "record": {"type": "path", "default": RECORD},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["record"])
    record = read_record(path)
    finished = record.get(KIND, {}).get("finished", 0.0)
    keys = Keys(module.params["timeout"])
    changed = False
    try:
        if module.params["state"] == "settled":
            if not module.check_mode:
                keys.settle()
        elif not finished:
            changed = keys.rotate(module.params["since"], module.check_mode)
            finished = time.time()
            if not module.check_mode:
                write_record(path, {**record, KIND: {**record.get(KIND, {}), "finished": finished}})
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed, finished=finished)


if __name__ == "__main__":
    main()
