"""One training on GPUs of two nodes: the same model as on one, and the loss of a pod costs no more than the steps since a checkpoint."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from .gpus import gpu_nodes
from .site import NAMESPACE, Job, Site, Store
from .training import SMALL, remove

OPTIONS = [*SMALL, "--train-steps", "8", "--log-every", "1", "--min-recall", "0"]
# Half batches are summed in another order than whole ones.
TOLERANCE = 0.01


def losses(store: Store, prefix: str) -> dict[int, float]:
    """Return the published model's total loss by step."""
    latest = store.latest(prefix)
    assert latest, f"nothing was published to {prefix}"
    text = store.read("epos-models", f"{latest['prefix']}loss.csv").decode()
    return {int(row["step"]): float(row["total"]) for row in csv.DictReader(io.StringIO(text))}


def built_with(store: Store, prefix: str) -> dict[str, Any]:
    """Return what the published model's card says of the processes that trained it."""
    latest = store.latest(prefix)
    assert latest
    card: dict[str, Any] = json.loads(store.read("epos-models", f"{latest['prefix']}card.json"))
    found: dict[str, Any] = card["built_with"]
    return found


@pytest.mark.fault
@pytest.mark.usefixtures("few_images")
def test_two_processes_train_as_one_and_survive_a_loss(trained: dict[str, Any], site: Site, store: Store) -> None:
    """Two pods with a GPU each on two nodes; one is killed, both go on from the checkpoint, and the losses are those of one process."""
    if sum(node.slots > node.used for node in gpu_nodes(site)) < 2:
        pytest.skip("fewer than two nodes of this site have a free GPU")
    with Job(site, "epos-test-one", [*OPTIONS, "--models", "s3://epos-models/test-one"], gpus=1) as job:
        log = job.follow(timeout=600)
        assert job.finished() == "Complete", log[-3000:]

    shared = ["--models", "s3://epos-models/test-two", "--checkpoints", "s3://epos-models/test-two/checkpoints"]
    options = [*OPTIONS, *shared, "--checkpoint-every", "2", "--peer-timeout", "10"]
    with Job(site, "epos-test-two", options, manifest="distributed.yml") as job:
        job.await_log("step 3", timeout=300, index=0)
        leader, worker = (job.pods(index)[-1] for index in (0, 1))
        assert leader.spec.node_name != worker.spec.node_name
        site.core.delete_namespaced_pod(worker.metadata.name, NAMESPACE, grace_period_seconds=0)
        log = job.follow(timeout=600)
        assert job.finished() == "Complete", log[-3000:]
    assert "resum" in log

    one, two = losses(store, "test-one"), losses(store, "test-two")
    assert two == pytest.approx(one, rel=TOLERANCE)
    card = built_with(store, "test-two")
    assert card["processes"] == 2
    assert len(set(card["gpus"])) == 2
    for prefix in ("test-one/", "test-two/"):
        remove(store, "epos-models", prefix)
