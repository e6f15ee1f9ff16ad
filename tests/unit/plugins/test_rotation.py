"""Rotation of k3s' secrets: who leads, what is done already, and what each step does to a node's files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.k3s import epoch
from ansible.module_utils.slipway.k3s_rotation import begin, key_time, plan_rotation, read_record, write_record

from modules.k3s_certificates import is_due
from modules.k3s_encryption import FINISHED, START, Keys, read_status
from modules.k3s_service import reason_to_start
from modules.k3s_token import FORMER, renew_agent, renew_server

from .stage import listed

BEGUN = 1_790_000_000.0


def server(*names: str, votes: bool = True, **more: Any) -> dict[str, Any]:
    """What k3s_state says of a server of a cluster of these."""
    return {"has_data": True, "active": True, "members": listed(*names, votes=votes), "rotation": {}, **more}


AGENT = {"active": True, "rotation": {}}


def test_the_last_server_by_name_leads() -> None:
    plan = plan_rotation(["certificates", "agent-token"], dict.fromkeys("cab", server(*"abc")), {"x": AGENT})
    assert (plan.kinds, plan.lead, plan.administrator) == (("agent-token", "certificates"), "c", "a")
    assert (plan.servers, plan.agents, plan.resumed) == (("a", "b", "c"), ("x",), ())


def test_the_server_with_the_record_goes_on_leading_whatever_is_down() -> None:
    servers = dict.fromkeys("abc", server(*"abc")) | {
        "a": server(members=None, active=False, rotation={"server-token": {"begun": BEGUN}})
    }
    plan = plan_rotation(["certificates"], servers, {"x": {**AGENT, "active": False}})
    assert (plan.kinds, plan.resumed, plan.lead) == (("server-token", "certificates"), ("server-token",), "a")


@pytest.mark.parametrize(
    ("servers", "agents", "said"),
    [
        ({"a": server(members=None)}, {}, "a: its API does not answer"),
        (dict.fromkeys("ab", server(*"ab", votes=False)), {}, "a: its member of etcd does not vote"),
        ({"a": server("a")}, {"x": {**AGENT, "active": False}}, "x: k3s does not run there"),
        (dict.fromkeys("ab", server(*"ab", rotation={"kubeconfig": {}})), {}, "a and b each hold"),
    ],
)
def test_a_cluster_that_is_not_well_is_left_alone(
    servers: dict[str, dict[str, Any]], agents: dict[str, dict[str, Any]], said: str
) -> None:
    with pytest.raises(SlipwayError, match=said) as error:
        plan_rotation(["certificates"], servers, agents)
    assert "Nothing was changed" in str(error.value)


def test_the_record_keeps_the_first_beginning_and_goes_with_the_last_kind(tmp_path: Path) -> None:
    path = tmp_path / "rotation.json"
    write_record(path, begin(begin({}, ["certificates"], BEGUN), ["certificates", "kubeconfig"], BEGUN + 9))
    assert read_record(path) == {"certificates": {"begun": BEGUN}, "kubeconfig": {"begun": BEGUN + 9}}
    assert path.stat().st_mode & 0o777 == 0o600
    write_record(path, {})
    assert read_record(path) == {} and not path.exists()


def test_times() -> None:
    assert key_time("aescbckey") == 0
    assert key_time("aescbckey-2026-11-27T18:44:03Z") == key_time("aescbckey-2026-11-27T19:44:03+01:00") == 1795805043
    assert epoch("0") == epoch("") == 0
    running = {"ActiveState": "active", "ExecMainStartTimestampMonotonic": "1000000"}
    started = epoch("1000000")
    assert reason_to_start(running, {"applied": "x"}, "x", False, started - 5) == ""
    assert "not been started since" in reason_to_start(running, {"applied": "x"}, "x", False, started + 5)


def place(path: Path, text: str, age: float) -> Path:
    """A file that was changed `age` seconds after the rotation was begun."""
    path.write_text(text)
    os.utime(path, (BEGUN + age, BEGUN + age))
    return path


class TestServerToken:
    """k3s_token, of servers."""

    def files(self, folder: Path, configured: str = "old", kept: str = "old", age: float = -9) -> tuple[Path, Path]:
        return place(folder / "token", configured, -9), place(folder / "kept", f"K10ab::server:{kept}\n", age)

    def test_k3s_makes_it_and_the_former_one_is_kept_for_snapshots(self, tmp_path: Path) -> None:
        configured, kept = self.files(tmp_path)

        def rotate() -> None:
            place(kept, "K10ab::server:new\n", 1)

        assert renew_server(configured, kept, BEGUN, rotate=rotate)
        assert configured.read_text() == "new"
        assert (tmp_path / FORMER).read_text() == "old"
        assert {path.stat().st_mode & 0o777 for path in (configured, tmp_path / FORMER)} == {0o600}

    def test_it_is_made_once(self, tmp_path: Path) -> None:
        configured, kept = self.files(tmp_path)
        place(configured, "new", 1)
        assert not renew_server(configured, kept, BEGUN, rotate=pytest.fail)

    def test_an_interruption_behind_k3s_loses_nothing(self, tmp_path: Path) -> None:
        configured, kept = self.files(tmp_path, kept="new", age=1)
        assert renew_server(configured, kept, BEGUN, rotate=pytest.fail)
        assert configured.read_text() == "new"

    def test_a_token_that_somebody_else_has_changed_is_refused(self, tmp_path: Path) -> None:
        configured, kept = self.files(tmp_path, configured="other")
        with pytest.raises(SlipwayError, match="k3s runs with another token"):
            renew_server(configured, kept, BEGUN, rotate=pytest.fail)
        assert configured.read_text() == "other"

    def test_check_mode_changes_nothing(self, tmp_path: Path) -> None:
        configured, kept = self.files(tmp_path)
        assert renew_server(configured, kept, BEGUN, check=True, rotate=pytest.fail)
        assert configured.read_text() == "old" and not (tmp_path / FORMER).exists()

    def test_no_secret_is_in_a_message(self, tmp_path: Path) -> None:
        configured, kept = self.files(tmp_path, configured="other")
        with pytest.raises(SlipwayError) as error:
            renew_server(configured, kept, BEGUN)
        assert not {"old", "other"} & set(str(error.value).split())


def test_agents_get_a_random_token_once(tmp_path: Path) -> None:
    path = place(tmp_path / "agent-token", "old", -9)
    assert renew_agent(path, BEGUN, check=True) and path.read_text() == "old"
    assert renew_agent(path, BEGUN)
    made = path.read_text()
    assert len(made) == 64 and path.stat().st_mode & 0o777 == 0o600
    assert not renew_agent(path, BEGUN) and path.read_text() == made


def test_certificates_are_removed_once(tmp_path: Path) -> None:
    """Those of before the rotation; where they are gone already, and where they are new, nothing is left to remove."""
    assert not is_due(tmp_path / "leaf.crt", BEGUN)
    assert is_due(place(tmp_path / "leaf.crt", "", -1), BEGUN)
    assert not is_due(place(tmp_path / "leaf.crt", "", 1), BEGUN)


class K3s:
    """Answers `k3s secrets-encrypt` by turns."""

    old, new = "aescbckey", "aescbckey-2026-09-21T14:13:21Z"

    def __init__(self, *answers: dict[str, Any] | str, refuses: str = "") -> None:
        self.answers = list(answers)
        self.refuses = refuses
        self.asked: list[str] = []

    def __call__(self, *words: str) -> str:
        if words[1] != "status":
            self.asked.append(" ".join(words[1:]))
            if words[1] == self.refuses:
                raise SlipwayError(f"{words[1]} is refused")
            return ""
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, str):
            raise SlipwayError(answer)
        return json.dumps({"enable": True, "hashmatch": True, **answer})


def keys(k3s: K3s, cut: bool = False, timeout: float = 5) -> Keys:
    """Keys by a clock that passes by sleeping."""
    now = [0.0]
    pass_time: Callable[[float], None] = lambda seconds: now.__setitem__(0, now[0] + seconds)  # noqa: E731
    return Keys(timeout, k3s, lambda: cut, lambda: now[0], pass_time)


OLD = {"activekey": K3s.old, "stage": START}
NEW = {"activekey": K3s.new, "stage": FINISHED}
ACTIVE = {"activekey": K3s.new, "stage": "reencrypt_active"}


def test_a_key_is_made_and_its_use_awaited() -> None:
    """Also while the API server reads it, and does not answer."""
    k3s = K3s(OLD, "503", ACTIVE, NEW)
    assert keys(k3s).rotate(BEGUN, check=False)
    assert k3s.asked == ["rotate-keys"] and k3s.answers == [NEW]


def test_a_key_of_this_rotation_is_kept() -> None:
    k3s = K3s(NEW)
    assert not keys(k3s).rotate(BEGUN, check=False)
    assert k3s.asked == []


def test_a_reencryption_that_a_restart_has_cut_is_begun_again() -> None:
    k3s = K3s(ACTIVE, NEW)
    assert keys(k3s, cut=True).rotate(BEGUN, check=False)
    assert k3s.asked == ["reencrypt --force"]
    running = K3s(ACTIVE, ACTIVE, NEW)
    keys(running).rotate(BEGUN, check=False)
    assert running.asked == []


def test_a_request_that_ends_before_the_work_is_no_failure() -> None:
    assert keys(K3s(OLD, ACTIVE, NEW, refuses="rotate-keys")).rotate(BEGUN, check=False)
    with pytest.raises(SlipwayError, match="rotate-keys is refused"):
        keys(K3s(OLD, refuses="rotate-keys")).rotate(BEGUN, check=False)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({**OLD, "enable": False}, "Secrets are not encrypted"),
        ({**OLD, "hashmatch": False, "hasherror": "hash does not match between a and b"}, "between a and b"),
    ],
)
def test_what_cannot_be_rotated_is_said_before_anything_changes(status: dict[str, Any], said: str) -> None:
    k3s = K3s(status)
    with pytest.raises(SlipwayError, match=said):
        keys(k3s).rotate(BEGUN, check=False)
    assert k3s.asked == []


def test_servers_that_do_not_agree_are_named_when_time_is_over() -> None:
    differs = {**NEW, "hashmatch": False, "hasherror": "hash does not match between a and b"}
    keys(K3s(differs, NEW)).settle()
    with pytest.raises(SlipwayError, match=r"After 5 s the servers do not have the same keys: .* between a and b"):
        keys(K3s(differs)).settle()


def test_a_status_that_is_none_is_said() -> None:
    with pytest.raises(SlipwayError, match="cannot be read"):
        read_status("{}")
