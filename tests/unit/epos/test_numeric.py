"""Numerical parts against hand-computed values and brute force."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epos import network
from epos.bop import Instance, ObjectModel, rotation_about, symmetry_transforms
from epos.config import TrainConfig
from epos.fragments import Fragments, farthest_points, make_fragments, surface_points
from epos.losses import Targets, epos_loss, huber
from epos.measure import Recall, match, mspd, mssd
from epos.ply import Mesh
from epos.pose import Correspondences, Estimate, PoseConfig, correspondences, estimate_poses, fit_pose
from epos.raster import rasterize
from epos.render import diameter, objects, random_rotation
from epos.samples import canvas_shape, fit, scale_camera
from epos.train import State, adam, augment, batch_indices

CAMERA = np.array([[160.0, 0, 63.5], [0, 160.0, 63.5], [0, 0, 1]])
COLORS = np.zeros((0, 3), np.uint8)


def _model(mesh: Mesh, **info: object) -> ObjectModel:
    size = diameter(mesh.vertices)
    return ObjectModel(1, mesh, size, symmetry_transforms(None, "1", dict(info), size))  # type: ignore[arg-type]


def test_huber_is_quadratic_then_linear() -> None:
    values = huber(jnp.array([0.0, 0.5, -0.5, 1.0, 3.0, -3.0]), 1.0)
    assert np.allclose(values, [0, 0.125, 0.125, 0.5, 2.5, 2.5])
    assert np.allclose(huber(jnp.array([0.1, 1.0]), 0.2), [0.005, 0.2 * (1 - 0.1)])


def test_loss_of_one_image_by_hand() -> None:
    """Two cells: background with even object logits, and object 2 with known logits."""
    outputs = network.Outputs(
        jnp.array([[[[0.0, 0.0, 0.0], [0.0, 0.0, math.log(2)]]]]),
        jnp.array([[[[[9.0, 9.0], [9.0, 9.0]], [[7.0, 5.0], [0.0, math.log(3)]]]]]),
        jnp.zeros((1, 1, 2, 2, 2, 3)).at[0, 0, 1, 1, 1].set(jnp.array([0.5, 0.0, 2.0])),
    )
    targets = Targets(jnp.array([[[0, 2]]]), jnp.array([[[0, 1]]]), jnp.zeros((1, 1, 2, 3)))
    losses = epos_loss(outputs, targets, (1.0, 1.0, 100.0), 1.0)
    want_object = (math.log(3) + math.log(4 / 2)) / 2
    want_fragment = math.log(4 / 3)
    want_location = (0.125 + 0 + 1.5) / 3
    assert np.allclose(losses[1:], [want_object, want_fragment, want_location], rtol=1e-6)
    assert np.allclose(losses.total, want_object + want_fragment + 100 * want_location, rtol=1e-6)


def test_loss_without_any_object_is_finite() -> None:
    outputs = network.Outputs(jnp.zeros((1, 2, 2, 2)), jnp.zeros((1, 2, 2, 1, 3)), jnp.zeros((1, 2, 2, 1, 3, 3)))
    targets = Targets(jnp.zeros((1, 2, 2), int), jnp.zeros((1, 2, 2), int), jnp.ones((1, 2, 2, 3)))
    losses = epos_loss(outputs, targets, (1.0, 1.0, 100.0), 1.0)
    assert np.allclose(losses, [math.log(2), math.log(2), 0, 0], rtol=1e-6)


def test_gradient_agrees_with_finite_differences() -> None:
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda p: jnp.asarray(np.asarray(p), jnp.float64), network.init(3, "small", 2, 3))
        images = jnp.asarray(rng.random((2, 64, 64, 3)))
        targets = Targets(
            jnp.asarray(rng.integers(0, 3, (2, 16, 16))),
            jnp.asarray(rng.integers(0, 3, (2, 16, 16))),
            jnp.asarray(rng.normal(size=(2, 16, 16, 3))),
        )

        def loss_of(p: network.Params) -> jax.Array:
            return epos_loss(network.apply(p, images, 2), targets, (1.0, 1.0, 100.0), 1.0).total

        fast = {"xla_backend_optimization_level": 0}  # Compiling takes longer than running.
        loss = jax.jit(loss_of, compiler_options=fast)
        gradient = jax.jit(jax.grad(loss_of), compiler_options=fast)(params)
        for layer in ("stem", "down2", "up1", "refine", "objects", "fragments", "locations"):
            for name, value in params[layer].items():
                direction = rng.normal(size=value.shape)
                step = 1e-8
                ends = [
                    float(loss({**params, layer: {**params[layer], name: value + sign * step * direction}}))
                    for sign in (1, -1)
                ]
                numeric = (ends[0] - ends[1]) / (2 * step)
                analytic = float((gradient[layer][name] * direction).sum())
                assert numeric == pytest.approx(analytic, rel=1e-3, abs=1e-5), (layer, name)


def test_adam_takes_the_first_step_by_hand() -> None:
    """After one step, the bias corrected moments are g and g², so the step is rate · (sign(g) + decay · p)."""
    config = TrainConfig(train_steps=10, warmup_steps=0, learning_rate=0.1, weight_decay=0.5)
    params = {"a": {"w": jnp.array([[2.0, -4.0]]), "b": jnp.array([1.0])}}
    zero = jax.tree.map(jnp.zeros_like, params)
    gradient = {"a": {"w": jnp.array([[3.0, -0.01]]), "b": jnp.array([-7.0])}}
    new = adam(config, State(params, zero, zero), gradient, jnp.array(0)).params
    assert np.allclose(new["a"]["w"], [[2 - 0.1 * (1 + 1), -4 - 0.1 * (-1 - 2)]], rtol=1e-4)
    assert np.allclose(new["a"]["b"], [1.1], rtol=1e-4), "biases do not decay"


def test_farthest_points_against_brute_force() -> None:
    points = np.random.default_rng(1).normal(size=(200, 3))
    chosen: list[int] = []
    seeds = [points.mean(axis=0)]
    for _ in range(20):
        distances = [min(float(np.linalg.norm(p - s)) for s in seeds) for p in points]
        best = int(np.argmax(distances))
        chosen.append(best)
        # The centroid only starts the search.
        seeds = [points[i] for i in chosen] + [points.mean(axis=0)]
    assert farthest_points(points, 20).tolist() == chosen


def test_fragments_cover_the_surface() -> None:
    model = _model(objects()[1][0])
    fragments = make_fragments({1: model}, 16)
    points, _ = surface_points(model.mesh, 16 * 32)
    numbers, locations = fragments.assign(0, points)
    nearest = np.linalg.norm(points[:, None] - fragments.centers[0][None], axis=2).argmin(axis=1)
    assert (numbers == nearest).all()
    back = fragments.centers[0][numbers] + locations * fragments.sizes[0][numbers][:, None]
    assert np.allclose(back, points)
    assert np.abs(locations).max() <= 1 + 1e-9, "locations are measured in fragment sizes"


def test_coarse_meshes_get_points_on_their_faces() -> None:
    mesh = Mesh(np.array([[0.0, 0, 0], [10, 0, 0], [0, 10, 0], [0, 0, 10]]), np.array([[0, 1, 2], [0, 1, 3]]), COLORS)
    points, normals = surface_points(mesh, 300)
    assert len(points) == len(normals) == 300
    on_first = np.isclose(points[:, 2], 0) & (points[:, 0] + points[:, 1] <= 10 + 1e-9)
    on_second = np.isclose(points[:, 1], 0) & (points[:, 0] + points[:, 2] <= 10 + 1e-9)
    assert (on_first | on_second).all()


def _brute_force(estimate: Estimate, truth: Instance, model: ObjectModel, project: bool) -> float:
    rotations, translations = model.symmetries
    best = math.inf
    for r, t in zip(rotations, translations, strict=True):
        worst = 0.0
        for x in model.mesh.vertices:
            a = estimate.rotation @ x + estimate.translation
            b = truth.rotation @ (r @ x + t) + truth.translation
            if project:
                a, b = (CAMERA @ p / p[2] for p in (a, b))
            worst = max(worst, float(np.linalg.norm(a - b)))
        best = min(best, worst)
    return best


@pytest.mark.parametrize("symmetry", ["none", "discrete", "continuous"])
def test_mssd_and_mspd_against_brute_force(symmetry: str) -> None:
    rng = np.random.default_rng(5)
    info: dict[str, object] = {}
    if symmetry == "discrete":
        info = {"symmetries_discrete": [[-1, 0, 0, 4, 0, -1, 0, 2, 0, 0, 1, 0, 0, 0, 0, 1]]}
    if symmetry == "continuous":
        info = {"symmetries_continuous": [{"axis": [0, 0, 1], "offset": [3, 1, 0]}]}
    model = _model(Mesh(rng.normal(size=(12, 3)) * 30, np.array([[0, 1, 2]]), COLORS), **info)
    truth = Instance(1, random_rotation(rng), np.array([5.0, -3, 400]), 1.0, None)
    estimate = Estimate(1, random_rotation(rng), np.array([1.0, 2, 390]), 1.0)
    assert mssd(estimate, truth, model) == pytest.approx(_brute_force(estimate, truth, model, False))
    assert mspd(estimate, truth, model, CAMERA) == pytest.approx(_brute_force(estimate, truth, model, True))


@pytest.mark.parametrize("obj_id", [2, 3])
def test_symmetric_poses_are_right(obj_id: int) -> None:
    """A pose turned by a symmetry has no error, one turned otherwise has."""
    mesh, info = objects()[obj_id]
    model = _model(mesh, **info)
    rng = np.random.default_rng(2)
    truth = Instance(1, random_rotation(rng), np.array([0.0, 0, 400]), 1.0, None)
    angle = math.pi if obj_id == 2 else 1.2345
    turned = Estimate(1, truth.rotation @ rotation_about(np.array([0, 0, 1.0]), angle), truth.translation, 1.0)
    tolerance = 1e-6 if obj_id == 2 else 0.011 * model.diameter  # Continuous symmetries are sampled.
    assert mssd(turned, truth, model) < tolerance
    wrong = Estimate(1, truth.rotation @ rotation_about(np.array([1.0, 0, 0]), 1.0), truth.translation, 1.0)
    assert mssd(wrong, truth, model) > 0.2 * model.diameter


def test_rendered_models_have_the_symmetries_they_claim() -> None:
    """Turned by a symmetry, every vertex meets one of the same colour."""
    for obj_id, angle in ((2, math.pi), (3, 2 * math.pi / 48 * 5)):
        mesh, _ = objects()[obj_id]
        turned = mesh.vertices @ rotation_about(np.array([0, 0, 1.0]), angle).T
        distance = np.linalg.norm(turned[:, None] - mesh.vertices[None], axis=2)
        partner = distance.argmin(axis=1)
        assert distance.min(axis=1).max() < 1e-6
        assert np.abs(mesh.colors[partner].astype(int) - mesh.colors).max() <= 1


def test_recall_averages_over_thresholds_and_ignores_hidden_objects() -> None:
    model = _model(Mesh(np.array([[0.0, 0, 0], [100, 0, 0], [0, 1, 0]]), np.array([[0, 1, 2]]), COLORS))
    truth = Instance(1, np.eye(3), np.array([0.0, 0, 1000]), 1.0, None)
    hidden = Instance(1, np.eye(3), np.array([300.0, 0, 1000]), 0.05, None)
    off = Estimate(1, np.eye(3), np.array([0.0, 0, 1000 + 0.225 * model.diameter]), 1.0)
    recall = Recall()
    recall.add([off], [truth, hidden], {1: model}, CAMERA, 128)
    summary = recall.summary()
    assert summary["instances"] == 1
    assert summary["recall_mssd"] == 0.6, "right at 0.25 to 0.5 of the diameter"
    assert summary["recall_mspd"] == 1.0, "0.35 px in an image of 128 px are 1.8 px at 640"
    missed = Recall()
    missed.add([], [truth], {1: model}, CAMERA, 128)
    assert missed.summary()["recall"] == 0.0


def test_each_instance_is_found_once() -> None:
    errors = np.array([[0.1, 0.9], [0.2, 0.9]])
    assert match(errors, [1.0, 2.0], 0.5) == 1
    assert match(np.array([[0.1, 0.4], [0.2, 0.9]]), [1.0, 2.0], 0.5) == 2


def test_rasterizer_against_ray_casting() -> None:
    """Each pixel's ray is intersected with each triangle (Moeller, Trumbore, 1997)."""
    rng = np.random.default_rng(4)
    points = rng.uniform((-40, -40, 150), (40, 40, 250), (18, 3))
    faces = np.arange(18).reshape(6, 3)
    camera = np.array([[40.0, 0, 11.5], [0, 40, 9.5], [0, 0, 1]])
    seen = rasterize(points, faces, camera, (20, 24))
    for y, x in itertools.product(range(20), range(24)):
        ray = np.linalg.solve(camera, [x, y, 1.0])
        depth, face = math.inf, -1
        for i, (a, b, c) in enumerate(points[faces]):
            try:
                t, u, v = np.linalg.solve(np.stack([ray, a - b, a - c], axis=1), a)
            except np.linalg.LinAlgError:
                continue
            if u >= 0 and v >= 0 and u + v <= 1 and 0 < t < depth:
                depth, face = t, i
        assert seen.face[y, x] == face
        if face >= 0:
            assert seen.depth[y, x] == pytest.approx(depth)
            assert np.allclose(seen.interpolate(faces, points)[y, x], ray * depth)


def test_scaled_camera_projects_to_the_scaled_pixel() -> None:
    camera = scale_camera(CAMERA, 0.25, 0.25)
    point = np.array([12.0, -7, 300])
    before, after = (c @ point / point[2] for c in (CAMERA, camera))
    assert np.allclose((before[:2] + 0.5) / 4 - 0.5, after[:2])


def test_images_of_any_shape_fit_the_canvas() -> None:
    assert canvas_shape(480, 640, 640) == (480, 640)
    assert canvas_shape(540, 720, 128) == (96, 128)
    image = np.full((540, 720, 3), 200, np.uint8)
    scaled, camera = fit(image, CAMERA, (96, 128))
    assert scaled.shape == (96, 128, 3) and (scaled == 200).all()
    assert camera[0, 0] == pytest.approx(CAMERA[0, 0] * 128 / 720)
    padded, _ = fit(image, CAMERA, (128, 128))
    assert (padded[96:] == 0).all() and (padded[:96] == 200).all()


def test_every_epoch_shows_every_image_once() -> None:
    seen = np.concatenate([batch_indices(1, step, 10, 4) for step in range(5)])
    assert sorted(seen[:10]) == list(range(10)) and sorted(seen[10:]) == list(range(10))
    assert not (seen[:10] == seen[10:]).all()


def test_augmentation_turns_image_and_targets_alike() -> None:
    marks = np.zeros((6, 8, 8), np.int32)
    marks[:, 1, 2] = 1
    images = np.repeat(np.repeat(marks, 4, 1), 4, 2)[..., None] * np.ones(3)
    targets = Targets(jnp.asarray(marks), jnp.asarray(marks), jnp.zeros((6, 8, 8, 3)))
    turned, new = augment(jax.random.key(0), jnp.asarray(images, jnp.float32), targets)
    bright = np.asarray(turned).mean(axis=3).reshape(6, 8, 4, 8, 4).mean(axis=(2, 4)) > 0.5
    assert (bright == (np.asarray(new.objects) == 1)).all()
    assert len({tuple(np.argwhere(m)[0]) for m in bright}) > 1, "images turn by different angles"


def _perfect(rng: np.random.Generator, fragments: Fragments, poses: list[tuple[np.ndarray, np.ndarray]], mesh: Mesh):
    """Output of a perfect network for instances of one object in an image of 128 px."""
    shape = (32, 32)
    camera = scale_camera(CAMERA, 0.25, 0.25)
    objects_, parts = np.full((*shape, 2), -9.0), np.full((*shape, 1, fragments.centers.shape[1]), -9.0)
    places = rng.normal(size=(*shape, 1, fragments.centers.shape[1], 3)) * 0.2
    objects_[..., 0] = 0
    for rotation, translation in poses:
        seen = rasterize(mesh.vertices @ rotation.T + translation, mesh.faces, camera, shape)
        ys, xs = np.nonzero(seen.face >= 0)
        numbers, locations = fragments.assign(0, seen.interpolate(mesh.faces, mesh.vertices)[ys, xs])
        objects_[ys, xs, 1] = 9
        parts[ys, xs, 0, numbers] = 9
        places[ys, xs, 0, numbers] = locations
    return objects_, parts, places


def test_poses_of_two_instances_from_a_perfect_output() -> None:
    rng = np.random.default_rng(8)
    mesh = objects()[1][0]
    model = _model(mesh)
    fragments = make_fragments({1: model}, 16)
    truths = [(random_rotation(rng), np.array(t)) for t in ([-60.0, -50, 350], [70.0, 60, 400])]
    found = estimate_poses(*_perfect(rng, fragments, truths, mesh), fragments, CAMERA, {1: 2}, PoseConfig())
    assert len(found) == 2
    for rotation, translation in truths:
        truth = Instance(1, rotation, translation, 1.0, None)
        assert min(mssd(e, truth, model) for e in found) < 0.5, "mm"


def test_pose_survives_ambiguous_fragments_and_outliers() -> None:
    """Half of the links of each cell belong to the symmetric pose, and a fifth of the cells is nonsense."""
    rng = np.random.default_rng(9)
    mesh, info = objects()[2]
    model = _model(mesh, **info)
    rotation, translation = random_rotation(rng), np.array([5.0, -8, 350])
    points = mesh.vertices[rng.choice(len(mesh.vertices), 120, replace=False)]
    pixels = (points @ rotation.T + translation) @ CAMERA.T
    pixels = pixels[:, :2] / pixels[:, 2:] + rng.normal(0, 0.3, (120, 2))
    pixels[::5] = rng.uniform(0, 128, (24, 2))
    both = np.concatenate([points, points * (-1, -1, 1)])
    order = np.argsort(np.tile(np.arange(120), 2), kind="stable")
    pairs = Correspondences(
        np.concatenate([pixels, pixels]), both, np.zeros((240, 3)), np.full(240, 0.4), np.tile(np.arange(120), 2)
    ).select(order)
    found = fit_pose(pairs, CAMERA, 3.0, PoseConfig())
    assert found is not None
    truth = Instance(1, rotation, translation, 1.0, None)
    assert mssd(Estimate(1, found[0], found[1], 1.0), truth, model) < 0.06 * model.diameter
    assert len(set(pairs.cell[found[2]])) == len(found[2]), "a cell supports a pose once"


def test_normals_point_outward_also_for_models_turned_inside_out() -> None:
    mesh = objects()[2][0]
    for faces in (mesh.faces, mesh.faces[:, ::-1]):
        fragments = make_fragments({1: _model(Mesh(mesh.vertices, faces, mesh.colors))}, 24)
        length = np.linalg.norm(fragments.normals[0], axis=1)
        assert (length <= 1 + 1e-9).all() and (length > 0.5).all()
        assert ((fragments.normals[0] * fragments.centers[0]).sum(axis=1) > 0).all()


def test_surface_that_faces_away_supports_no_pose() -> None:
    """A bottle seen from the side links each cell to its whole ring; only poses that show the near side count."""
    mesh, info = objects()[3]
    model = _model(mesh, **info)
    fragments = make_fragments({1: model}, 64)
    rng = np.random.default_rng(3)
    tilt = rotation_about(np.array([1.0, 0, 0]), 1.1)
    truth = Instance(1, tilt, np.array([4.0, -6, 320]), 1.0, None)
    camera = scale_camera(CAMERA, 0.25, 0.25)
    points = mesh.vertices @ truth.rotation.T + truth.translation
    seen = rasterize(points, mesh.faces, camera, (32, 32))
    ys, xs = np.nonzero(seen.face >= 0)
    surface = seen.interpolate(mesh.faces, mesh.vertices)[ys, xs]
    links = []
    for angle in rng.uniform(0, 2 * np.pi) + 2 * np.pi / 10 * np.arange(10):
        ring = surface @ rotation_about(np.array([0, 0, 1.0]), angle).T
        links.append((ring, fragments.normals[0][fragments.assign(0, ring)[0]]))
    order = np.argsort(np.tile(np.arange(len(ys)), 10), kind="stable")
    pairs = Correspondences(
        np.tile(np.stack([xs, ys], axis=1).astype(float), (10, 1)),
        np.concatenate([p for p, _ in links]),
        np.concatenate([n for _, n in links]),
        np.full(10 * len(ys), 0.1),
        np.tile(np.arange(len(ys)), 10),
    ).select(order)
    found = fit_pose(pairs, camera, 0.75, PoseConfig())
    assert found is not None
    assert mssd(Estimate(1, found[0], found[1], 1.0), truth, model) < 0.05 * model.diameter


def test_cells_link_to_every_likely_fragment() -> None:
    fragments = Fragments(np.array([5]), np.arange(9.0).reshape(1, 3, 3), np.full((1, 3), 2.0), np.zeros((1, 3, 3)))
    objects_ = np.full((2, 2, 2), 0.0)
    objects_[..., 1] = -9
    objects_[1, 0] = (0, 3)
    parts = np.zeros((2, 2, 1, 3))
    parts[1, 0, 0] = np.log([0.5, 0.3, 0.2])
    places = np.zeros((2, 2, 1, 3, 3))
    places[1, 0, 0, 1] = (0.5, 0, 0)
    pairs = correspondences(objects_, parts, places, fragments, 0, PoseConfig(min_fragment=0.5))
    assert pairs.image.tolist() == [[0, 1], [0, 1]] and pairs.cell.tolist() == [0, 0]
    assert pairs.model.tolist() == [[0, 1, 2], [3 + 1, 4, 5]]
    probability = math.exp(3) / (1 + math.exp(3))
    assert np.allclose(pairs.confidence, [0.5 * probability, 0.3 * probability])


def test_too_few_points_give_no_pose() -> None:
    pairs = Correspondences(np.zeros((5, 2)), np.zeros((5, 3)), np.zeros((5, 3)), np.ones(5), np.arange(5))
    assert fit_pose(pairs, CAMERA, 3.0, PoseConfig()) is None
