"""Starts MariaDB as the mysql image starts MySQL.

The first start fills the empty volume; MYSQL_ROOT_PASSWORD and MYSQL_DATABASE have their effect then and never again. A start that
finds what an interrupted one has left begins anew. A volume that this program has not filled is never touched.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

DATA = Path("/var/lib/mysql")
SERVER = "/usr/sbin/mariadbd"
# The image's own settings. What is mounted into /etc/mysql/conf.d is meant for a server that has its accounts.
SETTINGS = "/etc/mysql/mariadb.conf.d/lab.cnf"
# One of them lies beside the data: the first as long as the volume is being filled, then the second.
FILLING, FILLED = ".slipway-filling", ".slipway-filled"
# What volumes hold before anybody has written to them.
EMPTY = {"lost+found"}
# Options that only MySQL has. What they ask for, passwords in MySQL's older way, is how MariaDB keeps them anyway.
ONLY_MYSQL = ("authentication-policy", "default-authentication-plugin", "mysql-native-password")
DATABASE = re.compile(r"[A-Za-z0-9_$-]{1,64}")


class StartError(Exception):
    """The server cannot be started; the message says what to do."""


def options(arguments: Sequence[str]) -> list[str]:
    """The options of `arguments` that MariaDB knows."""
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, _ = word.removeprefix("--").replace("_", "-").partition("=")
        if word.startswith("--") and name in ONLY_MYSQL:
            print(f"start: left out, as MariaDB has no such option: {word}", flush=True)
            if not equals and name != "mysql-native-password":
                next(words, None)
        else:
            kept.append(word)
    return kept


def data_folder(arguments: Sequence[str]) -> Path:
    """The folder that `--datadir` names, in one word or in two."""
    for number, word in enumerate(arguments):
        if word.startswith("--datadir="):
            return Path(word.partition("=")[2])
        if word == "--datadir" and number + 1 < len(arguments):
            return Path(arguments[number + 1])
    return DATA


def statements(password: str, database: str) -> str:
    """What gives an empty server its one account, and its database unless that name is empty.

    The server gets the password as the hash that it keeps, so that no message of it can contain the password.

    Raises:
        StartError: the password is empty, or the database has an impossible name.
    """
    if not password:
        raise StartError("MYSQL_ROOT_PASSWORD is empty or not set; this image starts no server without a password")
    if database and not DATABASE.fullmatch(database):
        raise StartError(f"MYSQL_DATABASE: {database!r} is not made of letters, digits, _, $ and -")
    kept = hashlib.sha1(hashlib.sha1(password.encode()).digest()).hexdigest().upper()
    lines = [
        # The server reads no accounts while it is filled, and so would change none.
        "FLUSH PRIVILEGES",
        "DELETE FROM mysql.global_priv WHERE User <> 'mariadb.sys'",
        "DELETE FROM mysql.proxies_priv",
        "FLUSH PRIVILEGES",
    ]
    for host in ("localhost", "%"):
        account = f"'root'@'{host}'"
        lines.append(f"CREATE USER {account} IDENTIFIED VIA mysql_native_password USING '*{kept}'")
        lines.append(f"GRANT ALL ON *.* TO {account} WITH GRANT OPTION")
    if database:
        lines.append(f"CREATE DATABASE `{database}`")
    return "".join(f"{line};\n" for line in lines)


def fill(data: Path, environment: Mapping[str, str]) -> None:
    """Fill the volume `data`, unless that was done.

    Raises:
        StartError: it holds what this program has not written, or the server refuses.
    """
    if (data / FILLED).exists():
        return
    sql = statements(environment.get("MYSQL_ROOT_PASSWORD", ""), environment.get("MYSQL_DATABASE", ""))
    there = {path.name for path in data.iterdir()} - EMPTY
    if there and FILLING not in there:
        raise StartError(
            f"{data} holds {', '.join(sorted(there)[:3])}: data of another server; give this one an empty volume"
        )
    for name in there - {FILLING}:
        path = data / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (data / FILLING).touch()
    print(f"start: filling {data}", flush=True)
    common = [f"--defaults-file={SETTINGS}", f"--datadir={data}"]
    # It would ask for the machine's name, which need not be in any DNS.
    _feed(["mariadb-install-db", *common, "--force", "--skip-test-db"], "")
    _feed([SERVER, *common, "--bootstrap"], sql)
    os.sync()
    (data / FILLING).rename(data / FILLED)
    print("start: filled", flush=True)


def _feed(command: Sequence[str], text: str) -> None:
    done = subprocess.run(command, input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise StartError(f"{command[0]} failed with status {done.returncode}:\n{done.stdout}")


def _stop(*_: object) -> None:
    raise StartError("stopped")


def main(arguments: Sequence[str]) -> None:
    """Fill the volume if need be, and become the server.

    Raises:
        StartError: that is impossible.
    """
    # The first process of a container ends by no signal that it does not handle.
    signal.signal(signal.SIGTERM, _stop)
    known = options(arguments)
    fill(data_folder(known), os.environ)
    environment = {name: value for name, value in os.environ.items() if name != "MYSQL_ROOT_PASSWORD"}
    os.execve(SERVER, [SERVER, *known], environment)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (StartError, OSError) as error:
        sys.exit(f"start: {error}")
