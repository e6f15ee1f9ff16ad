"""Hashing of inputs and the build cache."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.lab import cache as cache_module
from tests.lab.cache import Cache, hash_inputs


@pytest.fixture
def store(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_text("one")
    (folder / "sub/b").write_text("two")
    return folder


def test_hash_depends_on_content_name_and_mode(tree: Path) -> None:
    seen = {hash_inputs(files=[tree])}
    (tree / "a").write_text("changed")
    seen.add(hash_inputs(files=[tree]))
    (tree / "a").chmod(0o755)
    seen.add(hash_inputs(files=[tree]))
    (tree / "a").rename(tree / "c")
    seen.add(hash_inputs(files=[tree]))
    assert len(seen) == 4


def test_hash_ignores_times_and_what_tools_leave_behind(tree: Path) -> None:
    before = hash_inputs("word", files=[tree])
    os.utime(tree / "a", (1, 1))
    (tree / "__pycache__").mkdir()
    (tree / "__pycache__/a.pyc").write_text("x")
    assert hash_inputs("word", files=[tree]) == before


def test_hash_keeps_words_apart() -> None:
    assert hash_inputs("ab", "c") != hash_inputs("a", "bc")


def test_hash_names_a_missing_input(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        hash_inputs(files=[tmp_path / "nowhere"])


def test_entry_is_built_once(store: Cache) -> None:
    calls: list[Path] = []

    def build(draft: Path) -> None:
        calls.append(draft)
        draft.write_text("content")

    first = store.entry("program", "x", "0123456789abcdef", build)
    second = store.entry("program", "x", "0123456789abcdef", build)
    assert first == second == store.root / "program/x-0123456789ab"
    assert first.read_text() == "content"
    assert len(calls) == 1
    assert set(store.times) == {"program/x"}


def test_failed_build_leaves_nothing(store: Cache) -> None:
    def build(draft: Path) -> None:
        draft.write_text("half")
        raise RuntimeError("no space")

    with pytest.raises(RuntimeError):
        store.entry("program", "x", "k", build)
    assert not list((store.root / "program").iterdir())
    assert not list((store.root / "work").iterdir())


def test_draft_of_a_killed_run_is_removed_by_the_next(store: Cache) -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    (store.root / "work" / f"{done.pid}-abc/entry").mkdir(parents=True)
    with store.workdir() as work:
        assert [path.name for path in (store.root / "work").iterdir()] == [work.name]


def test_lock_lets_one_builder_in(store: Cache) -> None:
    built: list[str] = []

    def build(draft: Path) -> None:
        time.sleep(0.2)
        built.append("x")
        draft.write_text("")

    threads = [threading.Thread(target=store.entry, args=("image", "x", "k", build)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == ["x"]


def test_prune_keeps_the_last_used(store: Cache) -> None:
    now = time.time()
    for age, key in enumerate(("newest", "middle", "oldest")):
        path = store.entry("image", "a-b", key, Path.touch)
        os.utime(path, (now - age, now - age))
    path = store.entry("image", "c", "unused", Path.touch)
    os.utime(path, (now - 1000, now - 1000))
    gone = store.prune(["image"], older_than_s=100, keep=2)
    assert {path.name for path in gone} == {"a-b-oldest", "c-unused"}
    assert {path.name for path in (store.root / "image").iterdir()} == {"a-b-newest", "a-b-middle"}


def test_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLIPWAY_CACHE", str(tmp_path / "here"))
    assert cache_module.cache_root() == tmp_path / "here"
    monkeypatch.delenv("SLIPWAY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_module.cache_root() == tmp_path / "slipway"
