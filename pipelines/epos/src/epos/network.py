"""Encoder-decoder network with EPOS' three heads, in plain JAX.

Resolution is halved by folding pixels into channels and restored by unfolding them (Shi et al., "Real-Time Single
Image and Video Super-Resolution Using an Efficient Sub-Pixel CNN", 2016): all convolutions have stride 1, whose
gradients XLA computes fast on CPUs, and the decoder adds the encoder's features (U-Net, Ronneberger et al., 2015).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from epos.config import BACKBONES, STRIDE

Params = dict[str, dict[str, jax.Array]]


class Outputs(NamedTuple):
    """Predictions at each cell of the output grid.

    Attributes:
        objects: (B, h, w, O + 1) logits; class 0 is the background.
        fragments: (B, h, w, O, F) logits.
        locations: (B, h, w, O, F, 3) locations relative to the fragments, in fragment sizes.
    """

    objects: jax.Array
    fragments: jax.Array
    locations: jax.Array


def _layers(backbone: str, num_objects: int, num_frags: int) -> dict[str, tuple[int, int, int]]:
    """Kernel size, input and output channels of every convolution."""
    widths = BACKBONES[backbone]
    layers = {"stem": (3, 3 * STRIDE * STRIDE, widths[0])}
    for i, width in enumerate(widths):
        if i:
            layers[f"down{i}"] = (3, 4 * widths[i - 1], width)
        layers[f"encode{i}"] = (3, width, width)
    for i in reversed(range(len(widths) - 1)):
        layers[f"up{i}"] = (1, widths[i + 1], 4 * widths[i])
        layers[f"decode{i}"] = (3, widths[i], widths[i])
    layers["refine"] = (3, widths[0], 2 * widths[0])
    layers["objects"] = (1, 2 * widths[0], num_objects + 1)
    layers["fragments"] = (1, 2 * widths[0], num_objects * num_frags)
    layers["locations"] = (1, 2 * widths[0], num_objects * num_frags * 3)
    return layers


def init(seed: int, backbone: str, num_objects: int, num_frags: int) -> Params:
    """Random weights (He et al., "Delving Deep into Rectifiers", 2015); heads start near zero."""
    rng = np.random.default_rng(seed)
    params: Params = {}
    for name, (size, inputs, outputs) in _layers(backbone, num_objects, num_frags).items():
        head = name in Outputs._fields
        scale = 0.01 if head else (2.0 / (size * size * inputs)) ** 0.5
        weight = scale * rng.standard_normal((size, size, inputs, outputs))
        params[name] = {"w": jnp.asarray(weight, jnp.float32), "b": jnp.zeros(outputs)}
        if not head:
            params[name]["g"] = jnp.ones(outputs)
    return params


def _fold(x: jax.Array, n: int) -> jax.Array:
    b, h, w, c = x.shape
    return x.reshape(b, h // n, n, w // n, n, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // n, w // n, n * n * c)


def _unfold(x: jax.Array, n: int) -> jax.Array:
    b, h, w, c = x.shape
    return x.reshape(b, h, w, n, n, c // n**2).transpose(0, 1, 3, 2, 4, 5).reshape(b, h * n, w * n, c // n**2)


def _conv(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _block(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Convolution, normalisation of each channel over the image, rectifier.

    Instance normalisation (Ulyanov et al., 2016) in place of EPOS' batch normalisation: the same in training and use,
    for any batch size, and without state.
    """
    y = _conv(p, x)
    mean = y.mean(axis=(1, 2), keepdims=True)
    variance = ((y - mean) ** 2).mean(axis=(1, 2), keepdims=True)
    return jax.nn.relu((y - mean) * jax.lax.rsqrt(variance + 1e-5) * p["g"] + p["b"])


def apply(params: Params, images: jax.Array, num_objects: int) -> Outputs:
    """Runs the network.

    Args:
        params: from init().
        images: (B, H, W, 3) float in 0..1; H and W are multiples of 32.
        num_objects: number of objects.
    """
    depth = sum(name.startswith("encode") for name in params)
    x = _block(params["stem"], _fold(images - 0.5, STRIDE))
    skips = []
    for i in range(depth):
        if i:
            x = _block(params[f"down{i}"], _fold(x, 2))
        x = x + _block(params[f"encode{i}"], x)
        skips.append(x)
    for i in reversed(range(depth - 1)):
        x = skips[i] + _unfold(_block(params[f"up{i}"], x), 2)
        x = x + _block(params[f"decode{i}"], x)
    x = _block(params["refine"], x)
    heads: dict[str, Any] = {name: _conv(params[name], x) + params[name]["b"] for name in Outputs._fields}
    grid = x.shape[:3]
    num_frags = heads["fragments"].shape[-1] // num_objects
    return Outputs(
        heads["objects"],
        heads["fragments"].reshape(*grid, num_objects, num_frags),
        heads["locations"].reshape(*grid, num_objects, num_frags, 3),
    )
