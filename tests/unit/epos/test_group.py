"""Several processes that train together: the loss of one, a clear end when one is lost, and a way back."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from epos.bop import BopDataset
from epos.checkpoint import Folder
from epos.config import TrainConfig
from epos.errors import EposError, PeerError, UsageError
from epos.fragments import make_fragments
from epos.group import Group
from epos.job import DataOptions, RunOptions, train_model
from epos.peers import Peers
from epos.samples import Samples
from epos.train import train

SOURCE = Path(__file__).parents[3] / "pipelines" / "epos" / "src"
CONFIG = TrainConfig(backbone="small", image_size=64, num_frags=4, train_steps=12, batch_size=2, learning_rate=0.01,
                     warmup_steps=2, seed=3)  # fmt: skip
OPTIONS = ["--backbone", "small", "--image-size", "64", "--num-frags", "4", "--batch-size", "2", "--seed", "3",
           "--train-steps", "12", "--learning-rate", "0.01", "--warmup-steps", "2",
           "--log-every", "1", "--checkpoint-every", "2"]  # fmt: skip
# Of losses: sums are taken in another order, and twelve steps at this learning rate make the most of the difference.
TOLERANCE = 0.02
# Of the first three, as the README of the package states it; how much of it there is differs between CPUs.
FIRST_STEPS = 0.003
# Within this time, s, a process must notice that another one was killed; --peer-timeout later that it is silent.
SOON = 10


# A member of a group without data and model, for what does not depend on them: it counts until it is disturbed.
COUNT = """
import sys
from epos.errors import EposError
from epos.peers import Peers, watch

peers = Peers.from_environment()

def work():
    import jax
    import numpy as np
    from epos.group import Group

    group = Group(peers, 60, 4)
    group.join()
    total = jax.jit(lambda a: a.sum(), out_shardings=group.whole)
    try:
        with group.errors():
            for step in range(1_000_000):
                found = float(total(*group.divide((np.full((1, 2), float(step)),), 2)))
                print(f"step {step} {found}", flush=True)
    except EposError as error:
        print(f"epos: {error}", file=sys.stderr)
        return error.exit_code
    return 0

sys.exit(watch(peers, work))
"""


class Member:
    """One of two processes in a session of its own, as if in a pod of its own."""

    def __init__(self, folder: Path, index: int, port: int, *arguments: object) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.stdout, self.stderr = folder / "stdout", folder / "stderr"
        variables = {
            "PYTHONPATH": str(SOURCE),
            "JAX_NUM_PROCESSES": "2",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JOB_COMPLETION_INDEX": str(index),
            "NVIDIA_VISIBLE_DEVICES": f"GPU-{index}",
        }
        with self.stdout.open("w") as out, self.stderr.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                stdout=out, stderr=err, cwd=folder, env={**os.environ, **variables}, start_new_session=True,
            )  # fmt: skip

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to all its processes."""
        os.killpg(self.process.pid, number)

    def await_line(self, pattern: str, timeout: float = 120) -> None:
        """Waits for a line of its output."""
        end = time.monotonic() + timeout
        while not re.search(pattern, self.stdout.read_text(), re.MULTILINE):
            assert self.process.poll() is None, self.evidence()
            assert time.monotonic() < end, f"no line {pattern} after {timeout} s"
            time.sleep(0.02)

    def end(self, timeout: float = 120) -> int:
        """Waits for its exit status."""
        return self.process.wait(timeout)

    def evidence(self) -> str:
        """What it has printed."""
        return self.stdout.read_text() + self.stderr.read_text()


Start = Callable[..., "list[Member]"]


@pytest.fixture(scope="module", autouse=True)
def _devices() -> None:
    if jax.default_backend() == "gpu":
        pytest.skip("two processes need a GPU each; JAX_PLATFORMS=cpu lets them use the CPU")


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Starts processes 0 and 1, or one of them; whatever still runs is killed in the end."""
    members: list[Member] = []

    def run(folder: Path, *arguments: object, indices: tuple[int, ...] = (0, 1)) -> list[Member]:
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        started = [Member(folder / str(index), index, port, *arguments) for index in indices]
        members.extend(started)
        return started

    yield run
    for member in members:
        if member.process.poll() is None:
            member.signal(signal.SIGKILL)
            member.end()


@pytest.fixture(scope="module")
def alone(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The losses of one process."""
    folder = tmp_path_factory.mktemp("alone")
    train_model(DataOptions(rendered), CONFIG, RunOptions(folder, log_every=1))
    return np.loadtxt(folder / "loss.csv", delimiter=",", skiprows=1)


@pytest.fixture(scope="module")
def resumed(start: Start, rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Member]:
    """Two processes that trained to the end, after process 1 was killed in the middle and both were started again.

    Each has a work folder of its own: process 1 cannot see the checkpoints.
    """
    folder = tmp_path_factory.mktemp("together")
    command = ["-m", "epos", "train", "--data-dir", rendered, "--work-dir", "work", *OPTIONS]
    leader, helper = start(folder, *command)
    leader.await_line(r"^step 5/")
    helper.signal(signal.SIGKILL)
    assert leader.end(SOON) == PeerError.exit_code, leader.evidence()
    assert re.search(r"^epos: process 0 of 2: another process was lost", leader.stderr.read_text(), re.MULTILINE)
    members = start(folder, *command)
    assert [member.end() for member in members] == [0, 0], members[0].evidence() + members[1].evidence()
    return members


def test_a_lost_process_is_resumed_by_all(resumed: list[Member]) -> None:
    for member in resumed:
        assert re.search(r"^resuming from step [46]$", member.stdout.read_text(), re.MULTILINE)


def test_two_processes_reach_the_loss_of_one(alone: np.ndarray, resumed: list[Member]) -> None:
    losses = np.loadtxt(resumed[0].folder / "work/loss.csv", delimiter=",", skiprows=1)
    assert np.allclose(losses[0], alone[0], rtol=1e-4), "the same images, augmentation and weights"
    assert np.allclose(losses[:3], alone[:3], rtol=FIRST_STEPS)
    assert np.allclose(losses, alone, rtol=TOLERANCE)


def test_only_the_leader_writes_and_all_gpus_are_recorded(resumed: list[Member]) -> None:
    leader, helper = resumed
    assert not (helper.folder / "work").exists()
    assert "process 1 of 2: done; the leader does the rest" in helper.stdout.read_text()
    built = json.loads((leader.folder / "work/model/card.json").read_text())["built_with"]
    assert built["device"] == "cpu (cpu)" and built["gpus"] == ["GPU-0", "GPU-1"] and built["processes"] == 2
    assert "GPUs given: GPU-1; not used" in helper.stdout.read_text()


@pytest.mark.parametrize("lost", [0, 1], ids=["leader", "helper"])
@pytest.mark.parametrize(("how", "patience"), [(signal.SIGKILL, SOON), (signal.SIGSTOP, 4 + SOON)])
def test_a_process_does_not_outlive_another(
    lost: int, how: signal.Signals, patience: float, start: Start, tmp_path: Path
) -> None:
    """Killed, or silent: as when a node loses power, not even the end of a connection arrives."""
    members = start(tmp_path, "-c", COUNT)
    other = members[1 - lost]
    other.await_line(r"^step 9 36.0$")
    members[lost].signal(how)
    assert other.end(patience) == PeerError.exit_code, other.evidence()
    last = other.stderr.read_text().splitlines()[-1]
    assert last.startswith(f"epos: process {1 - lost} of 2: another process was lost")


def test_the_reason_is_the_last_line_whatever_jax_says_after_it() -> None:
    """JAX's threads go on for a moment after the work has said why it ends."""
    script = """
import sys
from epos.peers import ALONE, watch

def work():
    print("epos: another process was lost", "W1122 a thread of JAX", sep="\\n", file=sys.stderr)
    return 75

sys.exit(watch(ALONE, work))
"""
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)}
    )
    assert ended.returncode == PeerError.exit_code
    assert ended.stderr.splitlines() == ["epos: another process was lost", "W1122 a thread of JAX",
                                         "epos: another process was lost"]  # fmt: skip


def test_processes_that_do_not_come_are_not_awaited_for_ever(start: Start, rendered: Path, tmp_path: Path) -> None:
    command = ["-m", "epos", "train", "--data-dir", rendered, "--work-dir", "work", "--join-timeout", 2]
    (leader,) = start(tmp_path, *command, indices=(0,))
    assert leader.end(30) == PeerError.exit_code
    assert "process 0 of 2: waiting up to 2 s for all at localhost:" in leader.stdout.read_text()
    assert leader.stderr.read_text().endswith("epos: process 0 of 2: the others did not come in time\n")


def test_a_waiting_process_can_be_stopped(start: Start, tmp_path: Path) -> None:
    (helper,) = start(tmp_path, "-c", COUNT, indices=(1,))
    helper.await_line("waiting up to 60 s")
    time.sleep(0.5)
    helper.process.terminate()
    assert helper.end(SOON) == 143
    assert helper.stderr.read_text().endswith("epos: process 1 of 2: ended by SIGTERM\n")


def test_two_devices_of_one_process_share_the_batch(
    rendered: Path, alone: np.ndarray, command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    two = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    place = ["--data-dir", rendered, "--work-dir"]
    done = command("train", *place, tmp_path / "two", *OPTIONS, **two)
    assert done.returncode == 0, done.stderr
    losses = np.loadtxt(tmp_path / "two/loss.csv", delimiter=",", skiprows=1)
    assert np.allclose(losses, alone, rtol=TOLERANCE)
    done = command("train", *place, tmp_path / "three", *OPTIONS, "--batch-size", 3, **two)
    assert done.returncode == 2
    assert "epos: --batch-size: 3 is not a multiple of the 2 devices that train" in done.stderr


def test_a_finished_training_needs_nobody(rendered: Path, tmp_path: Path) -> None:
    """A leader that was lost after the last step comes back alone: the others are done."""
    dataset = BopDataset(rendered)
    models = dataset.models()
    samples = Samples(dataset.views("train"), models, make_fragments(models, CONFIG.num_frags), CONFIG.image_size)
    first = train(samples, CONFIG, tmp_path, "run")
    group = Group(Peers(2, 0, "nobody.invalid:1"), join_timeout=1)
    again = train(samples, CONFIG, tmp_path, "run", Folder(tmp_path / "checkpoints"), group)
    assert again.log == first.log and again.hardware == first.hardware


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES: 'two' is not a number from 1"),
        ({"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES: '0' is not a number from 1"),
        ({"JAX_NUM_PROCESSES": "2"}, "JOB_COMPLETION_INDEX: '' is not a number from 0"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID: 2 is not below JAX_NUM_PROCESSES, 2"),
        ({"JAX_NUM_PROCESSES": "2", "JOB_COMPLETION_INDEX": "1"}, "JAX_COORDINATOR_ADDRESS: '' is not of the form"),
    ],
)
def test_a_wrong_environment_is_named(variables: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=f"^environment: {re.escape(message)}"):
        Peers.from_environment(variables)


def test_processes_are_named_by_the_environment() -> None:
    address = {"JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": "job-0.service:8476"}
    assert Peers.from_environment({}) == Peers.from_environment({"JAX_NUM_PROCESSES": "1"}) == Peers(1, 0, "")
    assert Peers.from_environment({**address, "JOB_COMPLETION_INDEX": "1"}) == Peers(2, 1, "job-0.service:8476")
    found = Peers.from_environment({**address, "JAX_PROCESS_ID": "0", "JOB_COMPLETION_INDEX": "1"})
    assert found.leads and found == Peers(2, 0, "job-0.service:8476")


def test_other_failures_of_a_computation_keep_their_names() -> None:
    group = Group(Peers(2, 0, "leader:1"))
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"), group.errors():
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    with pytest.raises(PeerError, match="process 0 of 2: another process was lost: UNKNOWN: Gloo"), group.errors():
        raise ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer\nmore")
    with pytest.raises(EposError, match="given the same GPU") as caught, group.errors():
        raise RuntimeError("INTERNAL: NCCL: 'Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 60'")
    assert caught.value.exit_code == 1, "the processes may be placed otherwise the next time"
    with pytest.raises(ValueError, match="Gloo"), Group().errors():
        raise ValueError("Gloo")
