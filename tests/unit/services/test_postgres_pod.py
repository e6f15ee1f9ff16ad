"""What PostgreSQL's pod decides: which backup, when, and what its server hears of the archive."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

_spec = importlib.util.spec_from_file_location(
    "postgres_pod", Path(__file__).parents[3] / "services/postgresql/postgres_pod.py"
)
assert _spec and _spec.loader
pod = importlib.util.module_from_spec(_spec)
# Its dataclasses look their own module up.
sys.modules["postgres_pod"] = pod
_spec.loader.exec_module(pod)

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def backup(hours: float, timeline: int = 1, end_lsn: str = "0/2000000", status: str = "DONE") -> Any:
    """One that ended so many hours ago."""
    ended = NOW - timedelta(hours=hours)
    return pod.Backup.parse(
        {
            "backup_id": f"{ended:%Y%m%dT%H%M%S}",
            "status": status,
            "timeline": timeline,
            "end_time_iso": ended.isoformat() if status == "DONE" else None,
            "end_xlog": end_lsn if status == "DONE" else None,
        }
    )


HISTORY = "1\t0/5000000\tbefore 2026-11-26 08:00:00+00\n\n2\t0/9000000\tno recovery target specified\n"
# Timeline 1 was left at 0/5000000 and 2 at 0/9000000; the backups of 5 and 1 hours ago are on what was undone.
TAKEN = [
    backup(10),
    backup(5, end_lsn="0/6000000"),
    backup(3, 2, "0/7000000"),
    backup(1, 2, "0/A000000"),
    backup(0.5, 3, "0/B000000"),
    backup(0.1, 3, status="STARTED"),
]


@pytest.mark.parametrize(
    ("timeline", "hours", "chosen"),
    [
        (3, None, 0.5),
        (3, 0.7, 3),
        (3, 4, 10),
        (3, 11, None),
        (1, None, 5),
        (1, 6, 10),
    ],
)
def test_the_newest_backup_that_leads_there_is_chosen(timeline: int, hours: float | None, chosen: float | None) -> None:
    line = pod.lineage(timeline, HISTORY if timeline == 3 else "")
    target = NOW - timedelta(hours=hours) if hours else None
    found = pod.choose(TAKEN, line, target)
    assert (found and found.end) == (NOW - timedelta(hours=chosen) if chosen else None)


def test_positions_and_lineage() -> None:
    assert pod.lsn("1/10") == (1 << 32) + 16
    assert pod.lineage(3, HISTORY) == {3: float("inf"), 1: 0x5000000, 2: 0x9000000}


def test_when_a_backup_is_due() -> None:
    day = timedelta(hours=24)
    assert pod.due([], 1, NOW, day)
    assert not pod.due([backup(23)], 1, NOW, day)
    assert pod.due([backup(24)], 1, NOW, day)
    # One that was interrupted is none; each timeline has its own.
    assert pod.due([backup(1, status="STARTED")], 1, NOW, day)
    assert pod.due([backup(1)], 2, NOW, day)


@pytest.mark.parametrize("text", ["2026-11-26T12:00:00Z", "2026-11-26 12:00", "2026-11-26T13:00:00+01:00"])
def test_times(text: str) -> None:
    assert pod.parse_time(text) == NOW
    with pytest.raises(pod.PodError, match="no time such as"):
        pod.parse_time("noon")


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    """A volume with a cluster's identifier, and credentials."""
    data, archive = tmp_path / "data", tmp_path / "archive"
    (data / "global").mkdir(parents=True)
    (data / "global/pg_control").write_bytes(struct.pack("<Q", 7300000000000000001) + b"rest")
    archive.mkdir()
    for key, value in (("accessKey", "user"), ("secretKey", "secret"), ("endpoint", "minio.minio.svc:9000\n")):
        (archive / key).write_text(value)
    return pod.Settings.read({"PGDATA": str(data), "ARCHIVE_BUCKET": "b", "ARCHIVE_CREDENTIALS": str(archive)})


@pytest.mark.parametrize(("status", "heard"), [(0, 0), (1, 1), (2, 255), (3, 255), (4, 255)])
def test_only_what_is_not_there_is_the_end_of_the_archive(
    settings: Any, monkeypatch: pytest.MonkeyPatch, status: int, heard: int
) -> None:
    """An archive that does not answer must not let the server serve what it has."""
    asked: list[list[str]] = []

    class Client:
        @staticmethod
        def main(words: list[str]) -> None:
            asked.append(words)
            raise SystemExit(status)

    monkeypatch.setattr(pod.importlib, "import_module", lambda name: Client)
    monkeypatch.setattr(pod.os, "environ", {})
    assert pod.fetch(settings, pod.Archive(settings), "000000010000000000000001", "pg_wal/RECOVERYXLOG") == heard
    assert asked[0][-4:] == ["s3://b", "7300000000000000001", "000000010000000000000001", "pg_wal/RECOVERYXLOG"]
    assert "http://minio.minio.svc:9000" in asked[0]
    assert "secret" not in " ".join(asked[0])
    assert pod.os.environ["AWS_SECRET_ACCESS_KEY"] == "secret"


def test_without_credentials_the_server_does_not_take_it_for_the_end(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings.credentials / "accessKey").unlink()
    with pytest.raises(pod.PodError, match="no credentials for the archive"):
        pod.fetch(settings, pod.Archive(settings), "0" * 24, "x")


def test_a_volume_with_something_else_is_left_alone(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod, "server_major", lambda: "15")
    with pytest.raises(pod.PodError, match="holds no database cluster: it is not touched"):
        pod.prepare(settings, pod.Archive(settings))
    (settings.data / "PG_VERSION").write_text("13\n")
    with pytest.raises(pod.PodError, match="PostgreSQL 13, and this server is PostgreSQL 15: nothing is changed"):
        pod.prepare(settings, pod.Archive(settings))
    (settings.data / "PG_VERSION").write_text("15\n")
    settings.data.chmod(0o770)
    pod.prepare(settings, pod.Archive(settings))
    assert settings.data.stat().st_mode & 0o777 == 0o700


class Cursor:
    """The server's answers to the sidecar."""

    def __init__(self) -> None:
        self.timeline = 1
        self.said: list[str] = []

    def cursor(self) -> Cursor:
        return self

    def __enter__(self) -> Cursor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, sql: str) -> None:
        self.said.append(sql)

    def fetchone(self) -> tuple[int]:
        return (self.timeline,)

    @property
    def reloads(self) -> int:
        return sum("pg_reload_conf" in sql for sql in self.said)


def test_the_keeper(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reloads at another certificate, backs up when it is time and on a new timeline, and tries again after a failure."""
    certificate = tmp_path / "tls.crt"
    certificate.write_text("one")
    taken: list[Any] = []
    done: list[datetime] = []
    fail = [True]
    archive = pod.Archive(settings)
    monkeypatch.setattr(archive, "backups", lambda _: taken)

    def back_up(*_: object) -> None:
        if fail:
            fail.clear()
            raise pod.PodError("no")
        done.append(now)

    monkeypatch.setattr(pod, "back_up", back_up)
    keeper, cursor = pod.Keeper(replace(settings, certificate=certificate), archive), Cursor()
    now = NOW
    with pytest.raises(pod.PodError):
        keeper.look(cursor, now)
    now += timedelta(seconds=pod.RETRY - 1)
    keeper.look(cursor, now)
    assert (done, cursor.reloads) == ([], 1)
    now += timedelta(seconds=1)
    keeper.look(cursor, now)
    assert len(done) == 1
    certificate.write_text("two")
    keeper.look(cursor, now + timedelta(hours=23))
    assert (len(done), cursor.reloads) == (1, 2)
    cursor.timeline = 2
    now += timedelta(hours=23)
    keeper.look(cursor, now)
    assert len(done) == 2
    # Another sidecar finds a backup that is young enough.
    taken.append(backup(-23 - pod.RETRY / 3600, 2))
    other = pod.Keeper(replace(settings, certificate=certificate), archive)
    other.look(cursor, now)
    other.look(cursor, now + timedelta(hours=23))
    assert len(done) == 2
    taken.clear()
    other.look(cursor, now + timedelta(hours=25))
    assert len(done) == 3


def test_a_restore_point_is_in_the_archive_before_it_is_told_of(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    segments = iter(["", "00000002.history", "000000020000000000000006", "000000020000000000000007.00000028.backup"])
    asked: list[tuple[str, tuple[str, ...]]] = []

    class Server(Cursor):
        autocommit = False

        def execute(self, sql: str, values: tuple[str, ...] = ()) -> None:
            asked.append((sql, values))

        def fetchone(self) -> Any:
            return (next(segments) if "archiver" in asked[-1][0] else "000000020000000000000007",)

        def close(self) -> None:
            pass

    driver = SimpleNamespace(connect=lambda **_: Server(), Error=RuntimeError)
    monkeypatch.setattr(pod.importlib, "import_module", lambda _: driver)
    monkeypatch.setattr(pod, "identifier", lambda _: "7")
    monkeypatch.setattr(pod.time, "sleep", lambda _: None)
    told = pod.mark(settings, "slipway-x")
    assert asked[0] == ("SELECT pg_walfile_name(pg_create_restore_point(%s))", ("slipway-x",))
    assert "pg_switch_wal" in asked[1][0]
    assert {**told, "target_time": ""} == {"source": "7", "timeline": 2, "target_name": "slipway-x", "target_time": ""}
    assert pod.parse_time(told["target_time"]).tzinfo
    segments = iter([""] * 3)
    monkeypatch.setattr(pod, "ARCHIVED", -1)
    with pytest.raises(pod.PodError, match="000000020000000000000007 was not archived"):
        pod.mark(settings, "slipway-x")


def test_what_a_restoration_tells_the_server(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, target = pod.Archive(settings), tmp_path / "data.part"
    target.mkdir()
    calls: list[list[str]] = []
    monkeypatch.setattr(archive, "servers", lambda: ["1", "2"])
    monkeypatch.setattr(archive, "backups", lambda name: [backup(20)] if name == "1" else TAKEN)
    monkeypatch.setattr(archive, "timelines", lambda _: [2, 3])
    monkeypatch.setattr(archive, "history", lambda _, timeline: HISTORY if timeline == 3 else "")
    monkeypatch.setattr(archive, "demand", lambda client, words: calls.append([client, *words]))
    moment = (NOW - timedelta(hours=4)).isoformat()
    pod.restore(json.loads(json.dumps({"target_time": moment})), settings, archive, target)
    assert (calls[0][0], *calls[0][-3:]) == ("cloud_restore", "2", TAKEN[0].name, str(target))
    assert (tmp_path / "recovery.conf").read_text() == (
        "recovery_target_timeline = '3'\nrecovery_target_action = 'promote'\n"
        "recovery_target_time = '2026-11-26 08:00:00.000000+00'\n"
    )
    assert (target / "recovery.signal").stat().st_mode & 0o777 == 0o600
    pod.restore({"target_time": moment, "target_name": "slipway-x"}, settings, archive, target)
    assert calls[1][-2:] == calls[0][-2:]
    assert (tmp_path / "recovery.conf").read_text().endswith("recovery_target_name = 'slipway-x'\n")
    pod.restore({"source": "2", "timeline": "1"}, settings, archive, target)
    assert "time" not in (tmp_path / "recovery.conf").read_text().replace("timeline", "")
    with pytest.raises(pod.PodError, match="timeline is 9"):
        pod.restore({"timeline": "9"}, settings, archive, target)
    with pytest.raises(pod.PodError, match="the archive has: 1, 2"):
        pod.restore({"source": "3"}, settings, archive, target)
    monkeypatch.setattr(archive, "backups", lambda _: [backup(1, status="STARTED")])
    with pytest.raises(pod.PodError, match="no complete base backup"):
        pod.restore({}, settings, archive, target)
