"""Command line of the package.

Exit status: 0 done, 1 error, 2 wrong usage, 3 gate not passed, 4 bad data or model, 75 another process of the training
was lost or did not come, 143 stopped by SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from epos import __version__
from epos.config import ALIGN, BACKBONES, TrainConfig
from epos.errors import EposError, Terminated, UsageError
from epos.peers import ALONE, Peers, watch
from epos.versions import Share, check_shares

_EPILOG = """\
exit status: 0 done; 1 error; 2 wrong usage; 3 gate not passed; 4 bad data set or model;
  75 another process of the training was lost or did not come; 143 stopped by SIGTERM
environment (push, pull, run, step, listen, --checkpoints): S3_ENDPOINT host:port, S3_ACCESS_KEY, S3_SECRET_KEY,
  S3_SECURE true|false (true), S3_CA_FILE PEM file of the authority that signed the server's certificate
environment (deploy, step): GIT_USERNAME, GIT_PASSWORD
environment (train, run), in each of several processes that train together: JAX_NUM_PROCESSES,
  JAX_PROCESS_ID from 0 (or JOB_COMPLETION_INDEX), JAX_COORDINATOR_ADDRESS host:port of process 0
"""
_DEFAULT = " (default: %(default)s)"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message} (see --help)")


def _camera(text: str) -> list[float]:
    values = [float(v) for v in text.split(",")]
    if len(values) != 4 or not all(math.isfinite(v) for v in values):
        raise argparse.ArgumentTypeError("expected fx,fy,cx,cy in px")
    return values


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..1")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data set (BOP format)")
    group.add_argument("--data-dir", type=Path, required=True, metavar="DIR", help="folder of the data set")
    group.add_argument("--train-split", default="train", metavar="NAME", help="images to learn from" + _DEFAULT)
    group.add_argument("--test-split", default="test", metavar="NAME", help="images held out" + _DEFAULT)
    group.add_argument(
        "--models-dir", metavar="NAME", help="folder of meshes (default: models, models_cad, models_eval)"
    )


def _add_device(group: argparse._ActionsContainer) -> None:
    group.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto",
                       help="what to compute on; auto: a GPU where JAX can use one" + _DEFAULT)  # fmt: skip


def _add_training(parser: argparse.ArgumentParser) -> None:
    d = TrainConfig()
    group = parser.add_argument_group("training (part of the model's version)")

    def add(name: str, text: str, **more: Any) -> None:
        value = getattr(d, name.replace("-", "_"))
        group.add_argument(f"--{name}", type=type(value), default=value, help=text + _DEFAULT, **more)

    add("backbone", f"size of the network: {', '.join(BACKBONES)}", metavar="SIZE")
    add("image-size", f"longer side of the network's input, px, a multiple of {ALIGN}", metavar="PX")
    add("num-frags", "surface fragments of each object", metavar="N")
    add("weight-object", "weight of the object cross-entropy", metavar="W")
    add("weight-fragment", "weight of the fragment cross-entropy", metavar="W")
    add("weight-location", "weight of the Huber loss of 3D locations", metavar="W")
    add("huber-delta", "border of the Huber loss's quadratic part, fragment sizes", metavar="D")
    add("train-steps", "number of updates", metavar="N")
    add("batch-size", "images in an update", metavar="N")
    add("learning-rate", "peak of the schedule", metavar="R")
    add("warmup-steps", "updates until the peak", metavar="N")
    add("weight-decay", "decoupled decay of the weights", metavar="D")
    add("seed", "of weights, batches and augmentation", metavar="N")
    group = parser.add_argument_group("process")
    group.add_argument("--work-dir", type=Path, required=True, metavar="DIR", help="checkpoints, losses, model")
    group.add_argument("--checkpoint-every", type=_positive, default=100, metavar="N", help="updates" + _DEFAULT)
    group.add_argument("--keep-checkpoints", type=_positive, default=2, metavar="N", help="how many" + _DEFAULT)
    group.add_argument("--log-every", type=_positive, default=20, metavar="N", help="updates between lines" + _DEFAULT)
    group.add_argument(
        "--cache-mib", type=_natural, default=512, metavar="MIB", help="decoded images in memory" + _DEFAULT
    )
    group.add_argument("--checkpoints", metavar="s3://BUCKET/PREFIX", help="keep the checkpoint there, not in WORK_DIR")
    _add_device(group)
    group = parser.add_argument_group("several processes (see environment below)")
    group.add_argument("--join-timeout", type=_positive, default=300, metavar="S",
                       help="how long to wait for the others" + _DEFAULT)  # fmt: skip
    group.add_argument("--peer-timeout", type=_positive, default=30, metavar="S",
                       help="silence after which one is lost" + _DEFAULT)  # fmt: skip


def _add_pose(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pose fitting")
    group.add_argument(
        "--min-object", type=float, default=0.1, metavar="P", help="least probability of an object" + _DEFAULT
    )
    group.add_argument("--min-fragment", type=float, default=0.3, metavar="P",
                       help="least probability of a fragment, relative to the best" + _DEFAULT)  # fmt: skip
    group.add_argument("--inlier-px", type=float, default=3.0, metavar="PX",
                       help="reprojection error of an inlier, px of the network's input" + _DEFAULT)  # fmt: skip
    group.add_argument(
        "--iterations", type=int, default=1000, metavar="N", help="samples RANSAC draws at most" + _DEFAULT
    )
    group.add_argument("--pose-seed", type=int, default=1, metavar="N", help="of RANSAC" + _DEFAULT)


def _add_gate(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("judgement")
    group.add_argument("--min-recall", type=_fraction, default=0.0, metavar="R",
                       help="gate: least mean of MSSD and MSPD recall, 0..1" + _DEFAULT)  # fmt: skip
    group.add_argument("--overlays", type=_natural, default=8, metavar="N", help="pictures of poses" + _DEFAULT)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="epos", description=__doc__.splitlines()[0] if __doc__ else None, epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.description = "6D object poses by surface fragments (EPOS): data, training, evaluation, models."
    parser.add_argument("--version", action="version", version=f"epos {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND", parser_class=_Parser)

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        return verbs.add_parser(
            name, help=text, description=text, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    p = verb("render", "render a small data set in the BOP format")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to create")
    p.add_argument("--train-images", type=_positive, default=320, metavar="N", help="images to learn from" + _DEFAULT)
    p.add_argument("--test-images", type=_positive, default=48, metavar="N", help="images held out" + _DEFAULT)
    p.add_argument("--image-size", type=_positive, default=128, metavar="PX", help="width and height" + _DEFAULT)
    p.add_argument(
        "--seed", type=_natural, default=1, metavar="N", help="the same seed gives the same bytes" + _DEFAULT
    )

    p = verb("validate", "read a whole data set and report everything that is wrong")
    _add_data(p)

    p = verb("fragments", "divide the surfaces of all objects into fragments")
    _add_data(p)
    p.add_argument("--num-frags", type=_positive, default=TrainConfig().num_frags, metavar="N",
                   help="fragments of each object" + _DEFAULT)  # fmt: skip
    p.add_argument("--out", type=Path, metavar="FILE", help="JSON file (default: standard output)")

    p = verb("train", "train a model, or go on from its checkpoint; ends with the model in WORK_DIR/model")
    _add_data(p)
    _add_training(p)

    p = verb("evaluate", "measure a model on held-out images and hold it against the gate")
    _add_data(p)
    p.add_argument("--model", type=Path, required=True, metavar="DIR", help="exported model")
    p.add_argument(
        "--out", type=Path, metavar="DIR", help="metrics, predictions, pictures (default: the model's folder)"
    )
    _add_pose(p)
    _add_gate(p)

    p = verb("predict", "estimate poses in one image, or in a split of a data set")
    p.add_argument("--model", type=Path, required=True, metavar="DIR", help="exported model")
    p.add_argument("--image", type=Path, metavar="FILE", help="image; needs --camera")
    p.add_argument("--camera", type=_camera, metavar="FX,FY,CX,CY", help="intrinsics of the image, px")
    p.add_argument("--data-dir", type=Path, metavar="DIR", help="data set in place of an image")
    p.add_argument("--test-split", default="test", metavar="NAME", help="images of the data set" + _DEFAULT)
    p.add_argument("--models-dir", metavar="NAME", help="folder of meshes of the data set")
    p.add_argument("--out", type=Path, metavar="FILE",
                   help="JSON (image) or BOP's CSV (data set); an image's poses go to standard output by default")  # fmt: skip
    _add_pose(p)

    p = verb("export", "copy a trained model out of a work folder and verify the copy")
    p.add_argument("--work-dir", type=Path, required=True, metavar="DIR", help="of train")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to create")

    p = verb("push", "upload a data set or model folder to S3")
    p.add_argument("folder", type=Path, metavar="DIR")
    p.add_argument("url", metavar="s3://BUCKET/PREFIX")

    p = verb("pull", "download a data set, a model, or the latest model from S3")
    p.add_argument("url", metavar="s3://BUCKET/PREFIX")
    p.add_argument("folder", type=Path, metavar="DIR")
    p.add_argument("--latest", action="store_true", help="follow PREFIX/latest.json to the model it names")

    p = verb("listen", "serve predictions over HTTP until SIGTERM, by one version of a model or by several")
    p.add_argument("--models", required=True, metavar="s3://BUCKET/PREFIX", help="where versions lie; or a folder")
    p.add_argument("--serve", required=True, action="append", metavar="VERSION[=WEIGHT]",
                   help="version that answers; several share the requests by their weights (default: 1)")  # fmt: skip
    p.add_argument("--port", type=_natural, default=8080, metavar="N", help="where to listen" + _DEFAULT)
    p.add_argument("--workers", type=_positive, default=1, metavar="N", help="images computed at a time" + _DEFAULT)
    p.add_argument("--drain", type=_natural, default=5, metavar="S",
                   help="how long requests are still taken after SIGTERM" + _DEFAULT)  # fmt: skip
    _add_device(p)
    _add_pose(p)

    p = verb("deploy", "change by a commit which versions answer in an environment, and their shares of the requests")
    p.add_argument("--repository", required=True, metavar="URL", help="http(s) address of the GitOps repository")
    p.add_argument("--environment", required=True, metavar="NAME", help="dev, or prod, which waits for an approval")
    p.add_argument("--serve", required=True, action="append", metavar="VERSION[=WEIGHT]",
                   help="version that answers; several share the requests by their weights (default: 1)")  # fmt: skip
    p.add_argument("--reason", default="", metavar="TEXT", help="goes into the commit's message")
    p.add_argument("--ca-file", metavar="FILE", help="PEM file of the authority that signed the server's certificate")

    p = verb("run", "pull, validate, train, evaluate, gate, publish: all of it, as the Kubernetes Job does")
    p.add_argument("--data", required=True, metavar="s3://BUCKET/PREFIX", help="data set that push uploaded")
    p.add_argument("--models", required=True, metavar="s3://BUCKET/PREFIX", help="where models and latest.json go")
    _add_data(p)
    _add_training(p)
    _add_pose(p)
    _add_gate(p)

    p = verb("step", "one step of the pipeline, as Kubeflow Pipelines starts it")
    p.add_argument("name", metavar="NAME", help="as in pipeline.py")
    p.add_argument("--executor-input", required=True, metavar="JSON", help="what KFP puts in place of {{$}}")
    return parser


def _config(args: argparse.Namespace) -> TrainConfig:
    return TrainConfig(**{f.name: getattr(args, f.name) for f in fields(TrainConfig)})


def _execute(args: argparse.Namespace, peers: Peers) -> None:
    """Runs a sub-command; imports come late, so that --help and wrong usage answer at once."""
    if args.verb == "render":
        from epos.render import RenderConfig, render

        config = RenderConfig(args.train_images, args.test_images, args.image_size, args.seed)
        print(json.dumps(render(args.out, config)))
    elif args.verb == "validate":
        from epos.bop import BopDataset, validate

        print(json.dumps(validate(BopDataset(args.data_dir, args.models_dir), [args.train_split, args.test_split])))
    elif args.verb == "fragments":
        from epos.bop import BopDataset
        from epos.fragments import make_fragments

        found = make_fragments(BopDataset(args.data_dir, args.models_dir).models(), args.num_frags)
        value = {
            str(obj_id): {
                "centers_mm": found.centers[i].round(6).tolist(),
                "sizes_mm": found.sizes[i].round(6).tolist(),
            }
            for i, obj_id in enumerate(found.obj_ids)
        }
        _emit(args.out, value)
    elif args.verb in ("push", "pull"):
        _transfer(args)
    elif args.verb == "deploy":
        _deploy(args)
    elif args.verb == "listen":
        _listen(args)
    elif args.verb == "step":
        from epos import executor
        from epos.steps import STEPS

        if args.name not in STEPS:
            raise UsageError(f"epos step: {args.name!r} is none of {', '.join(STEPS)}")
        executor.run(STEPS[args.name], args.executor_input)
    elif args.verb == "export":
        import shutil

        from epos.model import load

        if args.out.exists():
            raise UsageError(f"{args.out}: exists already")
        load(args.work_dir / "model", probe=False)
        shutil.copytree(args.work_dir / "model", args.out)
        print(json.dumps({"version": load(args.out)[1], "model": str(args.out)}))
    else:
        _compute(args, peers)


def _emit(path: Path | None, value: Any) -> None:
    from epos.checkpoint import write_atomic

    text = json.dumps(value, indent=1) + "\n"
    if path is None:
        sys.stdout.write(text)
    else:
        write_atomic(path, text.encode())


def _transfer(args: argparse.Namespace) -> None:
    from epos import store

    place = store.Location.parse(args.url)
    client = store.connect()
    if args.verb == "push":
        print(json.dumps(store.push(client, args.folder, place)))
    elif args.latest:
        print(json.dumps({"version": store.pull_latest(client, place, args.folder)}))
    else:
        print(json.dumps(store.pull(client, place, args.folder)))


def _shares(args: argparse.Namespace) -> tuple[Share, ...]:
    return check_shares([Share.parse(text) for text in args.serve])


def _deploy(args: argparse.Namespace) -> None:
    missing = [name for name in ("GIT_USERNAME", "GIT_PASSWORD") if not os.environ.get(name)]
    if missing:
        raise UsageError(f"environment: {', '.join(missing)} not set")
    shares = _shares(args)
    from epos.gitops import serve

    user, password = os.environ["GIT_USERNAME"], os.environ["GIT_PASSWORD"]
    commit = serve(args.repository, user, password, args.environment, shares, args.reason, args.ca_file)
    print(json.dumps({"commit": commit}))


def _listen(args: argparse.Namespace) -> None:
    shares = _shares(args)
    from epos import service
    from epos.pose import PoseConfig

    pose = PoseConfig(args.min_object, args.min_fragment, args.inlier_px, args.iterations, args.pose_seed)
    service.listen(
        args.models, shares, service.bind(args.port), pose,
        workers=args.workers, drain=args.drain, hardware=args.device,
    )  # fmt: skip


def _compute(args: argparse.Namespace, peers: Peers) -> None:
    from epos import job, store
    from epos.pose import PoseConfig

    if args.verb == "predict":
        _predict(args)
        return
    data = job.DataOptions(args.data_dir, args.train_split, args.test_split, args.models_dir)
    if args.verb == "evaluate":
        pose = PoseConfig(args.min_object, args.min_fragment, args.inlier_px, args.iterations, args.pose_seed)
        metrics = job.evaluate_model(args.model, data, pose, args.out or args.model, args.overlays)
        job.check_gate(metrics, args.min_recall)
        return
    config = _config(args)
    options = job.RunOptions(
        args.work_dir,
        args.checkpoint_every,
        args.keep_checkpoints,
        args.log_every,
        args.cache_mib,
        store.Location.parse(args.checkpoints) if args.checkpoints else None,
        args.device,
        peers,
        args.join_timeout,
        args.peer_timeout,
    )
    if args.verb == "train":
        job.train_model(data, config, options)
        return
    pose = PoseConfig(args.min_object, args.min_fragment, args.inlier_px, args.iterations, args.pose_seed)
    source, target = store.Location.parse(args.data), store.Location.parse(args.models)
    job.run_job(source, target, data, config, pose, options, args.min_recall, args.overlays)


def _predict(args: argparse.Namespace) -> None:
    import numpy as np

    from epos.bop import BopDataset, read_image
    from epos.evaluate import predict_views, write_results
    from epos.model import load
    from epos.pose import PoseConfig

    if (args.image is None) == (args.data_dir is None):
        raise UsageError("epos predict: give either --image or --data-dir")
    if args.image is not None and args.camera is None:
        raise UsageError("epos predict: --image needs --camera")
    if args.data_dir is not None and args.out is None:
        raise UsageError("epos predict: --data-dir needs --out")
    pose = PoseConfig(args.min_object, args.min_fragment, args.inlier_px, args.iterations, args.pose_seed)
    model, version = load(args.model)
    if args.data_dir is not None:
        views = BopDataset(args.data_dir, args.models_dir).targets(args.test_split)
        write_results(args.out, views, predict_views(model, views, pose))
        return
    fx, fy, cx, cy = args.camera
    camera = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    found = [
        {"obj_id": e.obj_id, "score": e.score, "cam_R_m2c": e.rotation.ravel().tolist(),
         "cam_t_m2c": e.translation.tolist()}
        for e in model.predict(read_image(args.image), camera, None, pose)
    ]  # fmt: skip
    _emit(args.out, {"model_version": version, "poses": found})


def _terminate(*_: object) -> NoReturn:
    raise Terminated("stopped by SIGTERM")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    # As a container's first process, Python would ignore SIGTERM without a handler of its own.
    signal.signal(signal.SIGTERM, _terminate)
    return _status(lambda: _start(build_parser().parse_args(argv)))


def _start(args: argparse.Namespace) -> int:
    peers = Peers.from_environment() if args.verb in ("train", "run") else ALONE

    def work() -> int:
        _execute(args, peers)
        return 0

    return work() if peers.count == 1 else watch(peers, lambda: _status(work))


def _status(work: Callable[[], int]) -> int:
    """Exit status of some work; its errors in one line."""
    try:
        return work()
    except EposError as error:
        print(f"epos: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:
        print(f"epos: {error.filename or ''}: {error.strerror or error}", file=sys.stderr, flush=True)
        return EposError.exit_code
