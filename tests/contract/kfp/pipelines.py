# ruff: noqa: UP045
# mypy: ignore-errors
"""The pipelines behind compiled/*.yaml: `python3 tests/contract/kfp/pipelines.py` in the environment kfp.

Their image is any with a shell: the tests put one that the site has in the place of IMAGE. (The SDK reads annotations: no
`from __future__ import annotations` here.)
"""

from pathlib import Path
from typing import Optional

from kfp import compiler, dsl, kubernetes

IMAGE = "registry.example/shell:1"
# Metadata of an artifact go through the executor output file, whose path is in the executor input.
DESCRIBE = """
umask 077
printf 'rows: %s\\n' "$0" >"$1"
file=$(printf '%s' "$2" | sed 's/.*"outputFile": *"\\([^"]*\\)".*/\\1/')
printf '{"parameterValues":{"rows":%s},"artifacts":{"data":{"artifacts":[{"name":"data","uri":"","metadata":{"rows":%s}}]}}}' "$0" "$0" >"$file"
"""


@dsl.container_component
def make(count: int, data: dsl.Output[dsl.Dataset], rows: dsl.OutputPath(int)):
    return dsl.ContainerSpec(image=IMAGE, command=["sh", "-ec", DESCRIBE], args=[count, data.path, "{{$}}", rows])


@dsl.container_component
def read(data: dsl.Input[dsl.Dataset], content: dsl.OutputPath(str), given: dsl.OutputPath(str)):
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["sh", "-ec", 'cat "$0" >"$1"; printf "%s" "$3" >"$2"'],
        args=[data.path, content, given, "{{$}}"],
    )


@dsl.container_component
def tree(files: dsl.Output[dsl.Artifact]):
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["sh", "-ec", 'mkdir -p "$0/deep"; echo a >"$0/one"; echo b >"$0/deep/two"'],
        args=[files.path],
    )


@dsl.container_component
def listing(files: dsl.Input[dsl.Artifact], found: dsl.OutputPath(str)):
    return dsl.ContainerSpec(
        image=IMAGE, command=["sh", "-ec", 'cat "$0/one" "$0/deep/two" | tr -d "\\n" >"$1"'], args=[files.path, found]
    )


@dsl.container_component
def say(msg: str, said: dsl.OutputPath(str)):
    return dsl.ContainerSpec(
        image=IMAGE, command=["sh", "-ec", 'echo "says $0"; printf "%s" "$0" >"$1"'], args=[msg, said]
    )


@dsl.container_component
def fail(msg: str):
    return dsl.ContainerSpec(image=IMAGE, command=["sh", "-ec", 'echo "$0" >&2; exit 3'], args=[msg])


@dsl.container_component
def sleep(seconds: int):
    return dsl.ContainerSpec(
        image=IMAGE, command=["sh", "-c", 'trap "exit 143" TERM; sleep "$0" & wait $!'], args=[seconds]
    )


@dsl.container_component
def options(name: str, out: dsl.OutputPath(str), greeting: Optional[str] = None):
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["sh", "-ec", 'file=$0; printf "%s" "$*" >"$file"', out, name],
        args=[dsl.IfPresentPlaceholder(input_name="greeting", then=["--greeting", greeting], else_=["--silent"])],
    )


@dsl.container_component
def total(values: list, sum: dsl.OutputPath(str)):
    return dsl.ContainerSpec(image=IMAGE, command=["sh", "-ec", 'printf "%s" "$0" >"$1"'], args=[values, sum])


@dsl.container_component
def mounted(msg: str, gpus: dsl.OutputPath(str)):
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["sh", "-ec", 'echo "$0" >/scratch/file; cat /scratch/file; printf "%s" "$0" >"$1"'],
        args=[msg, gpus],
    )


@dsl.pipeline(name="contract-happy", description="artifacts, parameters, conditions, loops")
def happy(count: int = 10, greeting: Optional[str] = None):
    made = make(count=count)
    content = read(data=made.outputs["data"])
    with dsl.If(made.outputs["rows"] > 5):
        many = say(msg="many")
    with dsl.Else():
        few = say(msg="few")
    say(msg=dsl.OneOf(many.outputs["said"], few.outputs["said"]))
    with dsl.ParallelFor([1, 2, 3], parallelism=2) as item:
        one = make(count=item)
    total(values=dsl.Collected(one.outputs["rows"]))
    listing(files=tree().outputs["files"])
    options(name="x", greeting=greeting)
    say(msg=dsl.PIPELINE_JOB_NAME_PLACEHOLDER).after(content)


@dsl.pipeline(name="contract-cached")
def cached(count: int):
    """Without OneOf: the real server does not find the output of a branch whose task was taken from the cache."""
    read(data=make(count=count).outputs["data"])


@dsl.pipeline(name="contract-fail")
def failing():
    with dsl.ExitHandler(say(msg="cleanup")):
        first = fail(msg="on purpose")
        say(msg="never").after(first)


@dsl.pipeline(name="contract-slow")
def slow(seconds: int = 600):
    with dsl.ExitHandler(say(msg="cleanup")):
        sleep(seconds=seconds).set_retry(1).set_caching_options(False)


@dsl.pipeline(name="contract-user")
def user():
    made = make(count=1).set_caching_options(False)
    kubernetes.set_security_context(made, run_as_user=1234, run_as_non_root=True)
    read(data=made.outputs["data"]).set_caching_options(False)


@dsl.pipeline(name="contract-image")
def image():
    task = say(msg="never").set_caching_options(False)
    task.set_container_image("registry.invalid/none:1")


@dsl.pipeline(name="contract-volume")
def volume(storage_class: str = "local-path"):
    claim = kubernetes.CreatePVC(
        pvc_name_suffix="-scratch", access_modes=["ReadWriteOnce"], size="16Mi", storage_class_name=storage_class
    )
    task = mounted(msg="volume").set_caching_options(False)
    kubernetes.mount_pvc(task, pvc_name=claim.outputs["name"], mount_path="/scratch")
    kubernetes.DeletePVC(pvc_name=claim.outputs["name"]).after(task)


@dsl.pipeline(name="contract-gpu")
def gpu(storage_class: str = "local-path"):
    claim = kubernetes.CreatePVC(
        pvc_name_suffix="-scratch", access_modes=["ReadWriteOnce"], size="16Mi", storage_class_name=storage_class
    )
    task = mounted(msg="gpu").set_caching_options(False).set_cpu_limit("500m").set_memory_limit("128Mi")
    task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(1)
    kubernetes.mount_pvc(task, pvc_name=claim.outputs["name"], mount_path="/scratch")
    kubernetes.DeletePVC(pvc_name=claim.outputs["name"]).after(task)


def main() -> None:
    """Compile all of them."""
    for pipeline in (happy, cached, failing, slow, user, image, volume, gpu):
        target = Path(__file__).parent / "compiled" / f"{pipeline.name.removeprefix('contract-')}.yaml"
        compiler.Compiler().compile(pipeline, str(target))


if __name__ == "__main__":
    main()
