"""How the lab's MariaDB takes the place of the mysql image."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import images

_spec = importlib.util.spec_from_file_location("mariadb_start", images.RECIPES / "mariadb/start.py")
assert _spec and _spec.loader
start = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(start)

ENVIRONMENT = {"MYSQL_ROOT_PASSWORD": "pa'ss\\word", "MYSQL_DATABASE": "mlpipeline"}


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was fed to programs: the name of each and its input."""
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(start, "_feed", lambda command, text: calls.append((Path(command[0]).name, text)))
    return calls


def test_options_of_mysql_alone_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "--datadir", "/var/lib/mysql", "--authentication-policy=mysql_native_password", "--mysql-native-password=ON",
        "--default-authentication-plugin", "mysql_native_password", "--disable-log-bin", "--max_connections=9",
    ]  # fmt: skip
    assert start.options(given) == ["--datadir", "/var/lib/mysql", "--disable-log-bin", "--max_connections=9"]
    assert "--mysql-native-password=ON" in capsys.readouterr().out
    assert start.options(["--mysql_native_password", "--port=1"]) == ["--port=1"]


@pytest.mark.parametrize("words", [["--datadir", "/a"], ["--port=1", "--datadir=/a"]])
def test_the_volume_is_where_the_options_say(words: list[str]) -> None:
    assert start.data_folder(words) == Path("/a")
    assert start.data_folder([]) == Path("/var/lib/mysql")


def test_the_password_is_written_nowhere() -> None:
    sql = start.statements(ENVIRONMENT["MYSQL_ROOT_PASSWORD"], "mlpipeline")
    assert "pa'ss" not in sql
    inner = hashlib.sha1(ENVIRONMENT["MYSQL_ROOT_PASSWORD"].encode()).digest()
    kept = "*" + hashlib.sha1(inner).hexdigest().upper()
    assert sql.count(kept) == 2
    assert "'root'@'%'" in sql
    assert "CREATE DATABASE `mlpipeline`;\n" in sql
    assert "CREATE DATABASE" not in start.statements("x", "")


@pytest.mark.parametrize(
    ("environment", "fault"),
    [
        ({}, "MYSQL_ROOT_PASSWORD is empty"),
        ({"MYSQL_ROOT_PASSWORD": "", "MYSQL_ALLOW_EMPTY_PASSWORD": "true"}, "MYSQL_ROOT_PASSWORD is empty"),
        ({"MYSQL_ROOT_PASSWORD": "x", "MYSQL_DATABASE": "a`b"}, "MYSQL_DATABASE: 'a`b'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    tmp_path: Path, fed: list[tuple[str, str]], environment: dict[str, str], fault: str
) -> None:
    with pytest.raises(start.StartError, match=fault):
        start.fill(tmp_path, environment)
    assert not list(tmp_path.iterdir())
    assert fed == []


def test_a_volume_is_filled_once(tmp_path: Path, fed: list[tuple[str, str]]) -> None:
    (tmp_path / "lost+found").mkdir()
    start.fill(tmp_path, ENVIRONMENT)
    assert [name for name, _ in fed] == ["mariadb-install-db", "mariadbd"]
    assert "CREATE DATABASE" in fed[1][1]
    assert {path.name for path in tmp_path.iterdir()} == {"lost+found", start.FILLED}
    # A server that has its accounts needs no password to start.
    start.fill(tmp_path, {})
    assert len(fed) == 2


def test_what_an_interrupted_start_has_left_is_made_anew(tmp_path: Path, fed: list[tuple[str, str]]) -> None:
    (tmp_path / start.FILLING).touch()
    (tmp_path / "mysql").mkdir()
    (tmp_path / "mysql/half").write_text("x")
    (tmp_path / "ibdata1").write_text("x")
    start.fill(tmp_path, ENVIRONMENT)
    assert {path.name for path in tmp_path.iterdir()} == {start.FILLED}
    assert len(fed) == 2


def test_data_of_another_server_is_left_alone(tmp_path: Path, fed: list[tuple[str, str]]) -> None:
    (tmp_path / "ibdata1").write_text("x")
    with pytest.raises(start.StartError, match="holds ibdata1: data of another server"):
        start.fill(tmp_path, ENVIRONMENT)
    assert (tmp_path / "ibdata1").read_text() == "x"
    assert fed == []


def test_a_server_that_refuses_is_reported() -> None:
    with pytest.raises(start.StartError, match=r"sh failed with status 3:\nno"):
        start._feed(["sh", "-c", "echo no; exit 3"], "")


def test_a_volume_that_cannot_be_written_is_said_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, str(images.RECIPES / "mariadb/start.py"), f"--datadir={tmp_path / 'none'}"]
    done = subprocess.run(command, env={"MYSQL_ROOT_PASSWORD": "x"}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("start: ")
    assert str(tmp_path / "none") in done.stderr
    assert "Traceback" not in done.stderr
