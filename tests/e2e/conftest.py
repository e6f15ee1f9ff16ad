"""An installed site, seen through its API: any kubeconfig will do, the lab's or a real one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest

PROJECT = Path(__file__).parents[2]
# The suite reaches Services by the same code as the modules do.
ansible.module_utils.__path__.append(str(PROJECT / "plugins/module_utils"))

from .argocd import argo, argocd_installed  # noqa: E402, F401
from .front_door import ca_option, front_door  # noqa: E402, F401
from .git import git  # noqa: E402, F401
from .model_service import dev_service, picture, prod_service  # noqa: E402, F401
from .site import Epos, Site, Store  # noqa: E402
from .training import is_current, read_record, train  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that name a site."""
    group = parser.getgroup("slipway")
    group.addoption("--kubeconfig", default=os.environ.get("KUBECONFIG"), help="kubeconfig of the site")
    group.addoption("--bundle", default=str(PROJECT / ".slipway/lab/bundle"), help="directory of the site's bundle")
    ca_option(parser, PROJECT / ".slipway/lab/ca.crt")
    group.addoption("--report-dir", default=str(PROJECT / ".slipway/lab/report"), help="where results are written")
    group.addoption(
        "--train",
        choices=["always", "auto"],
        default="always",
        help="auto: train only when the site has no model of this data and code",
    )
    group.addoption("--dataset", default="", help="BOP data set to train on (default: rendered)")


@pytest.fixture(scope="session")
def site(request: pytest.FixtureRequest) -> Site:
    """The site under test."""
    kubeconfig = request.config.getoption("kubeconfig")
    if not kubeconfig or not Path(kubeconfig).is_file():
        pytest.exit(f"--kubeconfig: {kubeconfig or 'not given'}: no such file", returncode=2)
    return Site(Path(kubeconfig), Path(request.config.getoption("bundle")))


@pytest.fixture(scope="session")
def report_dir(request: pytest.FixtureRequest) -> Path:
    """Where results for people are written."""
    path = Path(request.config.getoption("report_dir"))
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def store(site: Site) -> Iterator[Store]:
    """The object store, as the training's own user."""
    with Store.open(site, "epos", "minio-epos") as store:
        yield store


@pytest.fixture(scope="session")
def epos(store: Store) -> Epos:
    """The training's command line on this machine, in its locked environment."""
    return Epos(store)


@pytest.fixture(scope="session")
def dataset(request: pytest.FixtureRequest, epos: Epos, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The BOP data set to train on."""
    given = request.config.getoption("dataset")
    if given:
        return Path(given)
    path = tmp_path_factory.mktemp("dataset") / "lab"
    epos.run("render", "--out", str(path))
    return path


@pytest.fixture(scope="session")
def trained(request: pytest.FixtureRequest, site: Site, store: Store, report_dir: Path) -> dict[str, Any]:
    """A site with a published model: trained now, or found current with --train=auto."""
    if request.config.getoption("train") == "auto" and is_current(site, store):
        record = read_record(store)
    else:
        epos, dataset = request.getfixturevalue("epos"), request.getfixturevalue("dataset")
        record = train(site, store, epos, dataset)
    (report_dir / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return record
