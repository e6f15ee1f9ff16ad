"""Packages of images: installed once for each lock file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import wheels
from tests.lab.cache import Cache


def test_packages_are_installed_once_for_each_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[str] = []

    def install(lock: Path, target: Path) -> None:
        installed.append(lock.read_text())
        (target / "package").mkdir(parents=True)
        (target / "package/module.py").write_text(lock.read_text())

    monkeypatch.setattr(wheels, "install", install)
    cache, lock = Cache(tmp_path / "cache"), tmp_path / "some.txt"
    for text, folder in (("a==1\n", "one"), ("a==1\n", "two"), ("a==2\n", "three")):
        lock.write_text(text)
        wheels.place(cache, lock, tmp_path / folder)
        assert (tmp_path / folder / "package/module.py").read_text() == text
    assert installed == ["a==1\n", "a==2\n"]
