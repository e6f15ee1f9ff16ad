# ruff: noqa: UP045
# mypy: ignore-errors
"""The pipelines behind compiled/*.yaml, compiled by the SDK: `python3 tests/unit/lab/kfp/pipelines.py` in the environment kfp.

Container components, so that the compiled files stay readable. The tests play the containers themselves, by these names of
programs: what matters here is what the compiler makes of each construct. (The SDK reads annotations: no
`from __future__ import annotations` here.)
"""

from pathlib import Path
from typing import NamedTuple, Optional

from kfp import compiler, dsl, kubernetes

IMAGE = "registry.example/step:1"


@dsl.container_component
def make(count: int, data: dsl.Output[dsl.Dataset], rows: dsl.OutputPath(int)):
    return dsl.ContainerSpec(
        image=IMAGE, command=["make", "--rows", rows], args=["--count", count, "--data", data.path]
    )


@dsl.container_component
def train(data: dsl.Input[dsl.Dataset], rate: float, model: dsl.Output[dsl.Model], score: dsl.OutputPath(float)):
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["train"],
        args=["--data", data.path, "--uri", data.uri, "--rate", rate, "--model", model.path, "--score", score],
    )


@dsl.container_component
def say(msg: str, said: dsl.OutputPath(str)):
    return dsl.ContainerSpec(image=IMAGE, command=["say"], args=[msg, said])


@dsl.container_component
def fail(msg: str):
    return dsl.ContainerSpec(image=IMAGE, command=["fail"], args=[msg])


@dsl.container_component
def note(what: str):
    return dsl.ContainerSpec(image=IMAGE, command=["note"], args=[what])


@dsl.container_component
def read(data: dsl.Input[dsl.Dataset]):
    return dsl.ContainerSpec(image=IMAGE, command=["read"], args=[data.path, data.uri])


@dsl.container_component
def items(found: dsl.OutputPath(list)):
    return dsl.ContainerSpec(image=IMAGE, command=["items"], args=[found])


@dsl.container_component
def total(values: list, sum: dsl.OutputPath(int)):
    return dsl.ContainerSpec(image=IMAGE, command=["total"], args=[values, sum])


@dsl.container_component
def step(note: str = "n"):
    return dsl.ContainerSpec(image=IMAGE, command=["step"], args=["--executor-input", "{{$}}"])


@dsl.container_component
def options(name: str, greeting: Optional[str] = None, times: int = 3, mood: Optional[str] = None):
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["options"],
        args=[
            dsl.IfPresentPlaceholder(input_name="greeting", then=["--greeting", greeting], else_=["--silent"]),
            dsl.IfPresentPlaceholder(input_name="mood", then=["--mood", mood]),
            "--name",
            name,
            "--times",
            times,
        ],
    )


@dsl.container_component
def joined(name: str):
    return dsl.ContainerSpec(image=IMAGE, command=["joined"], args=[dsl.ConcatPlaceholder(["--name=", name])])


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def gather(sets: list[dsl.Dataset], out: dsl.Output[dsl.Artifact]):
    pass


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def clean(status: dsl.PipelineTaskFinalStatus):
    print(status)


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def several() -> NamedTuple("outputs", [("number", int), ("flag", bool), ("words", list), ("table", dict)]):
    pass


@dsl.pipeline(name="happy", description="artifacts, parameters, a condition, a loop")
def happy(count: int = 10, rate: float = 0.5):
    made = make(count=count)
    trained = train(data=made.outputs["data"], rate=rate)
    with dsl.If(trained.outputs["score"] > 1.0, name="accept"):
        say(msg="accepted")
    with dsl.Else():
        say(msg="rejected")
    with dsl.ParallelFor([1, 2]) as item:
        make(count=item)


@dsl.pipeline(name="handled")
def handled(msg: str = "on purpose"):
    last = say(msg="cleanup")
    with dsl.ExitHandler(last, name="guarded"):
        fail(msg=msg)
        say(msg="beside")


@dsl.pipeline(name="status")
def status():
    with dsl.ExitHandler(clean()):
        fail(msg="on purpose")
    # What comes after a handled group still depends on it.


@dsl.pipeline(name="ignored")
def ignored():
    first = fail(msg="on purpose")
    note(what="after").after(first).ignore_upstream_failure()


@dsl.pipeline(name="branches")
def branches(coin: str = "heads") -> str:
    with dsl.If(coin == "heads"):
        one = say(msg="one")
    with dsl.Elif(coin == "tails"):
        other = say(msg="other")
    with dsl.Else():
        third = say(msg="third")
    chosen = dsl.OneOf(one.outputs["said"], other.outputs["said"], third.outputs["said"])
    say(msg=chosen).set_display_name("after the choice")
    return chosen


@dsl.pipeline(name="data-branches")
def data_branches(large: bool = True):
    with dsl.If(large == True):  # noqa: E712
        big = make(count=100)
    with dsl.Else():
        small = make(count=1)
    read(data=dsl.OneOf(big.outputs["data"], small.outputs["data"]))


@dsl.pipeline(name="loops")
def loops():
    found = items()
    with dsl.ParallelFor(found.outputs["found"], parallelism=2, name="outer") as item:
        made = make(count=item.n)
        with dsl.ParallelFor([1, 2], name="inner") as inner:
            again = make(count=inner)
            with dsl.If(item.n > 1):
                note(what=item.label)
        read(data=made.outputs["data"])
    total(values=dsl.Collected(made.outputs["rows"]))
    gather(sets=dsl.Collected(made.outputs["data"]))
    total(values=dsl.Collected(again.outputs["rows"]))


@dsl.pipeline(name="empty-loop")
def empty_loop(values: list = []):  # noqa: B006
    with dsl.ParallelFor(values) as item:
        say(msg=item)
    note(what="after")


@dsl.pipeline(name="part")
def part(count: int, factor: float = 2.0, label: Optional[str] = None) -> dsl.Dataset:
    made = make(count=count)
    train(data=made.outputs["data"], rate=factor)
    options(name="part", mood=label)
    return made.outputs["data"]


@dsl.pipeline(name="nested")
def nested(count: int = 5):
    inner = part(count=count).set_display_name("the part")
    read(data=inner.output)


@dsl.pipeline(name="imported")
def imported(uri: str = "s3://elsewhere/data.bin"):
    given = dsl.importer(artifact_uri=uri, artifact_class=dsl.Dataset, metadata={"source": "elsewhere"})
    fixed = dsl.importer(artifact_uri="minio://pipelines/fixed/set", artifact_class=dsl.Dataset, reimport=True)
    read(data=given.output)
    read(data=fixed.output)


@dsl.pipeline(name="optional")
def optional(greeting: Optional[str] = None, mood: Optional[str] = None, name: str = "world"):
    options(name=name, greeting=greeting, mood=mood)
    joined(name=name)


@dsl.pipeline(name="retried")
def retried():
    flaky = say(msg="flaky").set_retry(
        num_retries=2, backoff_duration="3s", backoff_factor=2, backoff_max_duration="60s"
    )
    note(what="after").after(flaky)


@dsl.pipeline(name="cached")
def cached(count: int = 3):
    made = make(count=count)
    train(data=made.outputs["data"], rate=0.1)
    say(msg="always").set_caching_options(False)


@dsl.pipeline(name="names")
def names():
    say(msg=dsl.PIPELINE_JOB_NAME_PLACEHOLDER)
    say(msg=dsl.PIPELINE_JOB_ID_PLACEHOLDER)
    say(msg=f"in {dsl.PIPELINE_TASK_NAME_PLACEHOLDER} of {dsl.PIPELINE_JOB_RESOURCE_NAME_PLACEHOLDER}")
    say(msg=dsl.PIPELINE_TASK_NAME_PLACEHOLDER)
    several()


@dsl.pipeline(name="site")
def site(secret: str = "given", memory: str = "1Gi", level: str = "debug"):
    volume = kubernetes.CreatePVC(
        pvc_name_suffix="-scratch", access_modes=["ReadWriteOnce"], size="1Gi", storage_class_name="local-path"
    )
    task = say(msg="hello").set_caching_options(False)
    task.set_cpu_limit("2").set_cpu_request("500m").set_memory_limit(memory).set_env_variable("LEVEL", "info")
    task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(1)
    kubernetes.mount_pvc(task, pvc_name=volume.outputs["name"], mount_path="/scratch", sub_path="a")
    kubernetes.use_secret_as_env(task, secret_name=secret, secret_key_to_env={"word": "PASSWORD"})
    kubernetes.use_secret_as_volume(task, secret_name="keys", mount_path="/keys", optional=True)
    kubernetes.use_config_map_as_env(task, config_map_name="settings", config_map_key_to_env={"level": "SETTING"})
    kubernetes.use_config_map_as_volume(task, config_map_name="settings", mount_path="/settings")
    kubernetes.use_field_path_as_env(task, env_name="NODE", field_path="spec.nodeName")
    kubernetes.add_toleration(task, key="gpu", operator="Exists", effect="NoSchedule")
    kubernetes.add_node_selector(task, label_key="disk", label_value="fast")
    kubernetes.add_node_affinity(task, match_expressions=[{"key": "zone", "operator": "In", "values": ["a"]}])
    kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit="64Mi")
    kubernetes.add_ephemeral_volume(
        task,
        volume_name="work",
        mount_path="/work",
        access_modes=["ReadWriteOnce"],
        size="1Gi",
        storage_class_name="fast",
    )
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    kubernetes.set_image_pull_secrets(task, ["registry"])
    kubernetes.set_timeout(task, 600)
    kubernetes.add_pod_label(task, "team", "vision")
    kubernetes.add_pod_annotation(task, "why", "because")
    kubernetes.set_security_context(task, run_as_user=1001, run_as_group=1001, run_as_non_root=True)
    kubernetes.DeletePVC(pvc_name=volume.outputs["name"]).after(task)


PIPELINES = (
    happy, handled, status, ignored, branches, data_branches, loops, empty_loop, nested, imported, optional, retried, cached,
    names, site,
)  # fmt: skip


def main() -> None:
    """Compile all of them."""
    for pipeline in PIPELINES:
        target = Path(__file__).parent / "compiled" / f"{pipeline.name}.yaml"
        compiler.Compiler().compile(pipeline, str(target))


if __name__ == "__main__":
    main()
