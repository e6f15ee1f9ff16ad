"""The pipeline from data to a model that answers, for Kubeflow Pipelines.

Compile it to pipeline.yaml after every change:

    .venv/kfp/bin/python pipelines/epos/pipeline.py

Each task runs `python3 -m epos step NAME` in the training image (src/epos/steps.py). `slipway-epos` stands for the image;
pipelines/submit.py puts the site's reference in its place.
"""

from pathlib import Path

from kfp import compiler, dsl, kubernetes

IMAGE = "slipway-epos"
S3_SECRET = "minio-epos"
GIT_SECRET = "git-pipeline"


def _step(name: str) -> dsl.ContainerSpec:
    return dsl.ContainerSpec(
        image=IMAGE, command=["python3", "-m", "epos", "step", name], args=["--executor-input", "{{$}}"]
    )


@dsl.container_component
def ingest(data: str, train_split: str, test_split: str, dataset: dsl.Output[dsl.Dataset]):
    """Describes the data set with the hash of every file."""
    return _step("ingest")


@dsl.container_component
def validate(dataset: dsl.Input[dsl.Dataset], models: str, run_id: str, report: dsl.Output[dsl.HTML]):
    """Holds the data set against all expectations."""
    return _step("validate")


@dsl.container_component
def fragments(dataset: dsl.Input[dsl.Dataset], num_frags: int, fragments: dsl.Output[dsl.Artifact]):
    """Divides the surfaces of all objects into fragments."""
    return _step("fragments")


@dsl.container_component
def train(
    dataset: dsl.Input[dsl.Dataset],
    fragments: dsl.Input[dsl.Artifact],
    models: str,
    run_id: str,
    backbone: str,
    image_size: int,
    num_frags: int,
    weight_object: float,
    weight_fragment: float,
    weight_location: float,
    huber_delta: float,
    train_steps: int,
    batch_size: int,
    learning_rate: float,
    warmup_steps: int,
    weight_decay: float,
    seed: int,
    checkpoint_every: int,
    model: dsl.Output[dsl.Model],
    losses: dsl.Output[dsl.Metrics],
    curve: dsl.Output[dsl.HTML],
):
    """Trains the model, or goes on from its last checkpoint in S3."""
    return _step("train")


@dsl.container_component
def evaluate(
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    models: str,
    service: str,
    run_id: str,
    overlays: int,
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    poses: dsl.Output[dsl.HTML],
):
    """Judges the model, and the one in production, on images held out."""
    return _step("evaluate")


@dsl.container_component
def gate(
    evaluation: dsl.Input[dsl.Artifact],
    min_recall: float,
    min_gain: float,
    summary: dsl.Output[dsl.Markdown],
    verdict: dsl.OutputPath(str),
    reason: dsl.OutputPath(str),
):
    """Decides: released or rejected."""
    return _step("gate")


@dsl.container_component
def register(
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    models: str,
    run_id: str,
    min_recall: float,
    reason: str,
    registered: dsl.Output[dsl.Model],
    version: dsl.OutputPath(str),
):
    """Publishes the model and points latest.json at it."""
    return _step("register")


@dsl.container_component
def deploy(
    registered: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    models: str,
    repository: str,
    image: str,
    domain: str,
    canary: int,
    commit: dsl.OutputPath(str),
):
    """Commits to the GitOps repository: to dev at once, to prod once approved."""
    return _step("deploy")


@dsl.container_component
def await_rollout(version: str, commit: str, service: str, timeout: int):
    """Waits until the service answers with the version."""
    return _step("await-rollout")


@dsl.container_component
def smoke(
    dataset: dsl.Input[dsl.Dataset],
    evaluation: dsl.Input[dsl.Artifact],
    version: str,
    service: str,
    images: int,
    agreement: dsl.Output[dsl.Metrics],
):
    """Compares the service's poses with those of the evaluation."""
    return _step("smoke")


@dsl.container_component
def reject(model: dsl.Input[dsl.Model], evaluation: dsl.Input[dsl.Artifact], models: str, run_id: str, reason: str):
    """Records the model and why it is not released."""
    return _step("reject")


def _prepare(task: dsl.PipelineTask, heavy: bool = False, retries: int = 3, secrets: bool = True) -> dsl.PipelineTask:
    """What all tasks have in common.

    Args:
        task: to prepare.
        heavy: whether it computes with JAX.
        retries: how often it may fail; every step may be repeated. KFP retries whatever the exit status says.
        secrets: whether it needs S3.
    """
    task.set_caching_options(False)
    if retries:
        task.set_retry(retries, backoff_duration="10s", backoff_factor=2.0, backoff_max_duration="300s")
    # As in job.yml; the others read, hash and copy.
    task.set_cpu_request("500m" if heavy else "100m").set_cpu_limit("4" if heavy else "2")
    task.set_memory_request("1Gi" if heavy else "256Mi").set_memory_limit("3Gi" if heavy else "1Gi")
    if secrets:
        variables = {"endpoint": "S3_ENDPOINT", "accessKey": "S3_ACCESS_KEY", "secretKey": "S3_SECRET_KEY"}
        kubernetes.use_secret_as_env(task, S3_SECRET, variables)
        task.set_env_variable("S3_SECURE", "false")
    return task


@dsl.pipeline(
    name="epos",
    description="6D object poses: from a BOP data set in S3 to a model that answers, or a reason why it does not.",
)
def epos(
    domain: str,
    data: str = "s3://epos-data/lab",
    train_split: str = "train",
    test_split: str = "test",
    models: str = "s3://epos-models/models",
    backbone: str = "base",
    image_size: int = 128,
    num_frags: int = 64,
    weight_object: float = 1.0,
    weight_fragment: float = 1.0,
    weight_location: float = 100.0,
    huber_delta: float = 1.0,
    train_steps: int = 9000,
    batch_size: int = 8,
    learning_rate: float = 3e-3,
    warmup_steps: int = 30,
    weight_decay: float = 1e-2,
    seed: int = 1,
    checkpoint_every: int = 100,
    min_recall: float = 0.5,
    min_gain: float = 0.0,
    overlays: int = 8,
    image: str = IMAGE,
    repository: str = "http://git.git/platform.git",
    canary: int = 0,
    service: str = "http://epos.epos-dev",
    rollout_timeout: int = 600,
    smoke_images: int = 4,
):
    """Builds the graph.

    Args:
        domain: of the site; the service answers at epos.<domain>.
        data: data set that `epos push` uploaded.
        train_split: images to learn from.
        test_split: images held out.
        models: where released models go; checkpoints, rejected and reports lie beside it.
        backbone: size of the network: small, base, large.
        image_size: longer side of the network's input, px.
        num_frags: surface fragments of each object.
        weight_object: weight of the object cross-entropy.
        weight_fragment: weight of the fragment cross-entropy.
        weight_location: weight of the Huber loss of 3D locations.
        huber_delta: border of the Huber loss's quadratic part, fragment sizes.
        train_steps: number of updates.
        batch_size: images in an update.
        learning_rate: peak of the schedule.
        warmup_steps: updates until the peak.
        weight_decay: decoupled decay of the weights.
        seed: of weights, batches and augmentation.
        checkpoint_every: updates between checkpoints.
        min_recall: least mean of MSSD and MSPD recall, 0..1.
        min_gain: how much more recall than the model in production; below 0 it is a tolerance.
        overlays: pictures of poses.
        image: reference of the image that serves the model.
        repository: GitOps repository.
        canary: share of production's requests for the new model, percent; 0 for all of them.
        service: address of the service in dev, inside the cluster.
        rollout_timeout: how long the rollout may take, s.
        smoke_images: images to ask the service about.
    """
    run_id = dsl.PIPELINE_JOB_ID_PLACEHOLDER
    ingested = _prepare(ingest(data=data, train_split=train_split, test_split=test_split))
    dataset = ingested.outputs["dataset"]
    # Data do not get better by trying again; what fails is reported once.
    validated = _prepare(validate(dataset=dataset, models=models, run_id=run_id), retries=0)
    parts = _prepare(fragments(dataset=dataset, num_frags=num_frags)).after(validated)
    trained = _prepare(
        train(
            dataset=dataset,
            fragments=parts.outputs["fragments"],
            models=models,
            run_id=run_id,
            backbone=backbone,
            image_size=image_size,
            num_frags=num_frags,
            weight_object=weight_object,
            weight_fragment=weight_fragment,
            weight_location=weight_location,
            huber_delta=huber_delta,
            train_steps=train_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            seed=seed,
            checkpoint_every=checkpoint_every,
        ),
        heavy=True,
    )
    trained.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(1)
    model = trained.outputs["model"]
    evaluated = _prepare(
        evaluate(dataset=dataset, model=model, models=models, service=service, run_id=run_id, overlays=overlays),
        heavy=True,
    )
    evaluation = evaluated.outputs["evaluation"]
    judged = _prepare(gate(evaluation=evaluation, min_recall=min_recall, min_gain=min_gain), secrets=False)
    reason = judged.outputs["reason"]
    with dsl.If(judged.outputs["verdict"] == "released", name="released"):
        registered = _prepare(
            register(
                model=model, evaluation=evaluation, models=models, run_id=run_id, min_recall=min_recall, reason=reason
            )
        )
        version = registered.outputs["version"]
        deployed = _prepare(
            deploy(
                registered=registered.outputs["registered"],
                evaluation=evaluation,
                models=models,
                repository=repository,
                image=image,
                domain=domain,
                canary=canary,
            )
        )
        kubernetes.use_secret_as_env(deployed, GIT_SECRET, {"username": "GIT_USERNAME", "password": "GIT_PASSWORD"})
        rolled_out = _prepare(
            await_rollout(version=version, commit=deployed.outputs["commit"], service=service, timeout=rollout_timeout),
            secrets=False,
        )
        _prepare(
            smoke(dataset=dataset, evaluation=evaluation, version=version, service=service, images=smoke_images)
        ).after(rolled_out)
    with dsl.Else(name="rejected"):
        _prepare(reject(model=model, evaluation=evaluation, models=models, run_id=run_id, reason=reason))


if __name__ == "__main__":
    compiler.Compiler().compile(epos, str(Path(__file__).with_name("pipeline.yaml")))
