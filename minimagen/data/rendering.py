"""Pictures of scenes of the shapes world, at any side, with smooth edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from minimagen.data.shapes import BACKGROUNDS, COLOURS, PlacedObject, Scene

T = TypeVar("T", float, Tensor)

# A shape is a signed distance to its edge, negative inside, in a frame where its radius is 1 and
# v points down. Distances make smooth edges at any size: a pixel's coverage is its distance to the
# edge, in pixels, clipped to [0, 1].


def _circle(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 0.95


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - 0.77


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    height, half_base = 1.6, 0.92  # apex at v = -1, base at v = 0.6
    slope = math.hypot(height, half_base)
    side = (u.abs() * height - (v + 1) * half_base) / slope
    return torch.maximum(side, v - 0.6)


def _star(u: Tensor, v: Tensor) -> Tensor:
    # fold the plane into one half of one of five points, where the edge is a straight line
    sector = 2 * math.pi / 5
    angle = torch.atan2(u, -v)
    angle = (angle - torch.round(angle / sector) * sector).abs()
    radius = torch.hypot(u, v)
    along, across = radius * angle.cos(), radius * angle.sin()
    inner_x, inner_y = 0.43 * math.cos(sector / 2), 0.43 * math.sin(sector / 2)
    normal = (inner_y, 1 - inner_x)  # from the tip (1, 0) to the inner corner
    return ((along - 1) * normal[0] + across * normal[1]) / math.hypot(*normal)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    u, v = u.abs(), v.abs()
    return torch.minimum(torch.maximum(u - 1, v - 0.32), torch.maximum(u - 0.32, v - 1))


def _heart(u: Tensor, v: Tensor) -> Tensor:
    # a square on its corner, and a disc on each of its upper sides
    half = 0.8 / math.sqrt(2)
    square = (u.abs() + (v - 0.06).abs()) / math.sqrt(2) - half
    lobe = torch.hypot(u.abs() - 0.4, v + 0.34) - half
    return torch.minimum(square, lobe)


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
}


def coverage_of(shape: str, frames: Tensor, side: int) -> Tensor:
    """How much of each pixel one shape covers in each of N frames, in [0, 1], (N, side, side).

    frames: (N, 4): x, y and radius of the object as shares of the side, its tilt in degrees
    """
    x, y, radius, tilt = frames[:, :, None, None].unbind(1)  # each (N, 1, 1)
    centres = (torch.arange(side, dtype=frames.dtype) + 0.5) / side
    right = (centres.reshape(1, 1, -1) - x) / radius  # (N, 1, W)
    down = (centres.reshape(1, -1, 1) - y) / radius  # (N, H, 1)
    cos, sin = torch.deg2rad(tilt).cos(), torch.deg2rad(tilt).sin()
    # turned back by the tilt, which is clockwise, since v points down
    distance = SHAPES[shape](cos * right + sin * down, cos * down - sin * right)
    return (0.5 - distance * radius * side).clamp(0, 1)


def coverage(objects: Sequence[PlacedObject], side: int) -> Tensor:
    """How much of each pixel each object covers, in [0, 1], shape (len(objects), side, side)."""
    frames = torch.tensor([[o.x, o.y, o.radius, o.tilt] for o in objects]).reshape(-1, 4)
    masks = torch.empty(len(objects), side, side)
    for shape in SHAPES:
        chosen = [i for i, thing in enumerate(objects) if thing.shape == shape]
        if chosen:
            masks[chosen] = coverage_of(shape, frames[chosen], side)
    return masks


def light_at(scene: Scene, x: T, y: T) -> T:
    """What the light leaves of a colour at a place (shares of the side), in [0, 1].

    It is 1 at the edge or corner nearest to the light, and falls as a plane to 1 - strength.
    """
    strength, angle = scene.light
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    along = (cos * (x - 0.5) + sin * (y - 0.5)) / (abs(cos) + abs(sin))  # in [-0.5, 0.5]
    return 1 - strength * (0.5 - along)


def render(scenes: Sequence[Scene], side: int) -> Tensor:
    """Images of scenes, shape (len(scenes), 3, side, side), float32 in [-1, 1].

    Raises ValueError when ``side`` is not positive.
    """
    if side < 1:
        raise ValueError(f"side is {side}, it should be a positive number of pixels")

    def rgb(values: list[tuple[int, int, int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).reshape(-1, 3, 1, 1) / 255

    image = rgb([BACKGROUNDS[scene.background] for scene in scenes]).repeat(1, 1, side, side)
    for layer in range(max((len(scene.objects) for scene in scenes), default=0)):
        rows = [i for i, scene in enumerate(scenes) if len(scene.objects) > layer]
        objects = [scenes[i].objects[layer] for i in rows]
        mask = coverage(objects, side).unsqueeze(1)  # (N, 1, H, W)
        shade = torch.tensor([thing.shade for thing in objects]).reshape(-1, 1, 1, 1)
        colour = rgb([COLOURS[thing.colour] for thing in objects]) * shade
        image[rows] += mask * (colour - image[rows])
    centres = (torch.arange(side) + 0.5) / side
    light = torch.stack([light_at(scene, centres, centres[:, None]) for scene in scenes])
    return 2 * image * light[:, None] - 1
