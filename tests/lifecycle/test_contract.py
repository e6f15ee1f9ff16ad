"""The contract of the k3s command, on a cluster without components."""

from __future__ import annotations

import sys

import pytest

from .conftest import PROJECT, Site

pytestmark = pytest.mark.timeout(2400)

# Several servers have a test of their own.
FILES = [f"tests/contract/{path.name}" for path in sorted((PROJECT / "tests/contract").glob("test_k3s_*.py"))]
FILES.remove("tests/contract/test_k3s_ha.py")


@pytest.mark.parametrize(
    "words",
    [
        # They mostly wait for pods, each file for its own.
        pytest.param(("-m", "not fault", "--numprocesses=3", "--dist=loadfile"), id="k3s"),
        pytest.param(("-m", "fault"), id="faults"),
    ],
)
def test_contract(cluster: Site, words: tuple[str, ...]) -> None:
    """What the playbooks rely on holds."""
    run = cluster.run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--durations=15", *FILES, *words)
    print(run.output[-8000:])
    assert run.status == 0, run.output[-8000:]
