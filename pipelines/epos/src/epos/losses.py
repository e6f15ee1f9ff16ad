"""EPOS' loss (section 3.2, eq. 4): cross-entropy of objects and fragments, Huber loss of locations."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from epos.network import Outputs


class Targets(NamedTuple):
    """Ground truth at each cell of the output grid.

    Attributes:
        objects: (B, h, w) int, 0 for the background.
        fragments: (B, h, w) int, meaningless on the background.
        locations: (B, h, w, 3) float, likewise.
    """

    objects: jax.Array
    fragments: jax.Array
    locations: jax.Array


class Losses(NamedTuple):
    """The weighted sum and its unweighted parts."""

    total: jax.Array
    object: jax.Array
    fragment: jax.Array
    location: jax.Array


def huber(error: jax.Array, delta: float) -> jax.Array:
    """Huber, "Robust Estimation of a Location Parameter" (1964)."""
    size = jnp.abs(error)
    return jnp.where(size <= delta, 0.5 * error**2, delta * (size - 0.5 * delta))


def epos_loss(outputs: Outputs, targets: Targets, weights: tuple[float, float, float], delta: float) -> Losses:
    """Computes the loss of a batch.

    The object part is the mean over all cells, the others over the cells of objects: as in the authors' code, where
    the paper divides all parts by the number of pixels. A symmetric object needs nothing special: the images show all
    its equivalent poses, so the fragment head learns the distribution over the fragments that look the same.

    Args:
        outputs: of the network.
        targets: ground truth.
        weights: of the object, fragment and location part.
        delta: of the Huber loss.
    """
    log_objects = jax.nn.log_softmax(outputs.objects)
    loss_object = -jnp.take_along_axis(log_objects, targets.objects[..., None], axis=-1).mean()

    foreground = (targets.objects > 0).astype(jnp.float32)
    count = jnp.maximum(foreground.sum(), 1.0)
    index = jnp.maximum(targets.objects - 1, 0)[..., None, None]
    logits = jnp.take_along_axis(outputs.fragments, index, axis=-2)[..., 0, :]
    fragment = targets.fragments[..., None]
    log_fragments = jnp.take_along_axis(jax.nn.log_softmax(logits), fragment, axis=-1)[..., 0]
    loss_fragment = -(log_fragments * foreground).sum() / count

    locations = jnp.take_along_axis(outputs.locations, index[..., None], axis=-3)[..., 0, :, :]
    predicted = jnp.take_along_axis(locations, fragment[..., None], axis=-2)[..., 0, :]
    loss_location = (huber(predicted - targets.locations, delta).mean(axis=-1) * foreground).sum() / count

    parts = (loss_object, loss_fragment, loss_location)
    return Losses(sum((w * p for w, p in zip(weights, parts, strict=True)), jnp.zeros(())), *parts)
