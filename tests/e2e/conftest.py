"""An installed site, seen through its API: any kubeconfig will do, the lab's or a real one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest

PROJECT = Path(__file__).parents[2]
# The suite reaches Services by the same code as the modules do.
ansible.module_utils.__path__.append(str(PROJECT / "plugins/module_utils"))

from .airflow import airflow, airflow_installed, dag  # noqa: E402, F401
from .argocd import argo, argocd_installed  # noqa: E402, F401
from .front_door import ca_option, front_door  # noqa: E402, F401
from .git import git  # noqa: E402, F401
from .model_service import dev_service, picture, prod_service  # noqa: E402, F401
from .pipelines import Pipelines  # noqa: E402
from .report import Recorder  # noqa: E402
from .site import Epos, Site, Store  # noqa: E402
from .training import (  # noqa: E402
    DATA,
    FEW,
    FEW_RENDERED,
    RENDERED,
    Way,
    adopt,
    download_images,
    find_way,
    is_current,
    lineage,
    read_record,
    release,
    remove,
    train,
    write_record,
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that name a site."""
    group = parser.getgroup("slipway")
    group.addoption("--kubeconfig", default=os.environ.get("KUBECONFIG"), help="kubeconfig of the site")
    group.addoption("--bundle", default=str(PROJECT / ".slipway/lab/bundle"), help="directory of the site's bundle")
    ca_option(parser, PROJECT / ".slipway/lab/ca.crt")
    group.addoption(
        "--components", default="", help="the site's components, with commas (default: those that are found)"
    )
    group.addoption("--report-dir", default=str(PROJECT / ".slipway/lab/report"), help="where results are written")
    group.addoption(
        "--train",
        choices=["always", "auto"],
        default="always",
        help="auto: train only when the site has no model of this data and code",
    )
    group.addoption("--dataset", default="", help="BOP data set to train on (default: rendered)")
    group.addoption(
        "--report", action="store_true", help="write index.html, for people, to the directory of the results"
    )
    group.addoption("--site-name", default="", help="in the report: what the site is called")
    group.addoption("--domain", default="", help="in the report: the site's domain")
    group.addoption("--timings", default="", help="in the report: the file with the times of Ansible's plays")


def pytest_configure(config: pytest.Config) -> None:
    """Have the report written, where it is wanted."""
    if config.getoption("report"):
        config.pluginmanager.register(Recorder(config), "slipway-report")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests after which others would not find what they expect come last."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


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
    epos.run("render", "--out", str(path), *RENDERED)
    return path


@pytest.fixture(scope="session")
def way(request: pytest.FixtureRequest, site: Site) -> Way:
    """How models are made on this site."""
    names = request.config.getoption("components")
    return find_way(site, names.split(",") if names else [])


@pytest.fixture(scope="session")
def trained(request: pytest.FixtureRequest, site: Site, store: Store, way: Way, report_dir: Path) -> dict[str, Any]:
    """A site with a published model, where the pipeline makes it with a released one: made now, or found current with --train=auto."""
    print(f"\n  models are made by {way}", flush=True)
    get = request.getfixturevalue
    door, repository = (get("front_door"), get("git")) if way.namespace else (None, None)
    domain = door.domain if door else ""
    auto = request.config.getoption("train") == "auto"
    if auto and is_current(site, store, way, domain):
        record = read_record(store)
    elif auto and door and (chain := lineage(site, store, way, domain)):
        record = adopt(site, store, way, door, chain)
        write_record(store, record)
    else:
        get("epos").run("push", str(get("dataset")), DATA)
        record = release(site, store, way, door, repository) if door and repository else train(site, store, way)
        write_record(store, record)
    (report_dir / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    return record


@pytest.fixture(scope="session")
def held_out(trained: dict[str, Any], store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that the published model has not seen, from the data that it was made of: a part of a BOP data set."""
    folder = tmp_path_factory.mktemp("held-out")
    download_images(store, folder, trained["data"])
    return folder


@pytest.fixture(scope="session")
def pipelines(site: Site, way: Way) -> Iterator[Pipelines]:
    """Kubeflow Pipelines; skips aloud where models are made without it."""
    if not way.namespace:
        pytest.skip(way.reason)
    with Pipelines.open(site, way.namespace) as pipelines:
        yield pipelines


@pytest.fixture(scope="session")
def released(pipelines: Pipelines, trained: dict[str, Any]) -> dict[str, Any]:
    """The record of the released model."""
    return trained


@pytest.fixture
def pointer(trained: dict[str, Any], store: Store) -> dict[str, Any]:
    """The pointer to the last good model, as it must stay."""
    latest = store.latest()
    assert latest
    return latest


@pytest.fixture(scope="session")
def few_images(epos: Epos, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data set too small for a good model, at FEW in the store too."""
    path = tmp_path_factory.mktemp("few") / "data"
    epos.run("render", "--out", str(path), *FEW_RENDERED)
    epos.run("push", str(path), FEW)
    yield path
    remove(store, "epos-data", FEW.removeprefix("s3://epos-data/") + "/")


@pytest.fixture(scope="session")
def corrupt(
    epos: Epos, few_images: Path, store: Store, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, list[str]]]:
    """A damaged data set in the store: where it is, and what of it must be named."""
    data = tmp_path_factory.mktemp("corrupt") / "data"
    shutil.copytree(few_images, data)
    cut = sorted(data.glob("train/*/rgb/*.png"))[3]
    cut.write_bytes(cut.read_bytes()[:200])
    cameras = sorted(data.glob("test/*/scene_camera.json"))[0]
    value = json.loads(cameras.read_text())
    image = sorted(value)[0]
    del value[image]["cam_K"]
    cameras.write_text(json.dumps(value))
    epos.run("push", str(data), "s3://epos-data/test-corrupt")
    yield (
        "s3://epos-data/test-corrupt",
        [str(cut.relative_to(data)), f"{cameras.relative_to(data)}: {image}.cam_K"],
    )
    remove(store, "epos-data", "test-corrupt/")
