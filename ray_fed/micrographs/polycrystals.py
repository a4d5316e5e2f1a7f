"""Synthetic polycrystals in two styles, for trials without data; and the true renderer of each style.

A Laguerre (power) diagram of jittered sites, its coordinates bent by a smooth random field, is the structure; a style
draws it. `gap` is the distance between the two styles: at 1 they contradict each other (twin edges of one look like
grain boundaries of the other), at 0 both are the same mean style.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from scipy import ndimage

from ray_fed.errors import ConfigError
from ray_fed.micrographs.micrograph_set import MicrographSet
from ray_fed.randomness import generator

StyleName = Literal["austenite", "iron"]
STYLES: tuple[StyleName, ...] = get_args(StyleName)


@dataclass(frozen=True)
class Style:
    """How a structure looks; grey levels run from 0 (black) to 1."""

    base: float
    """Mean grey level of a grain."""
    contrast: float
    """Spread (standard deviation) of the grains' mean levels."""
    line_depth: tuple[float, float]
    """How much darker a boundary is, least and most along the boundaries of one image."""
    line_width: float
    """1 to 2: how much of a second pixel a boundary line takes."""
    fading: float
    """Share of the boundary length that fades out."""
    twins: float
    """Share of grains that carry a twin band: straight edges that are no boundaries and stay out of the mask."""
    twin_contrast: float
    twin_depth: float
    blur: float
    """Standard deviation of the optical blur, pixels."""
    pits: float
    """Etch pits per 1000 pixels."""
    scratches: float
    """Mean number of bright polishing scratches per image."""
    light: float
    """Amplitude of uneven light."""
    noise: float
    """Standard deviation of the camera's noise."""
    bend: float
    """How far boundaries are bent, pixels."""


AUSTENITE = Style(0.78, 0.07, (0.15, 0.60), 1.0, 0.0, 0.45, 0.09, 0.30, 0.7, 0.0, 0.0, 0.02, 0.025, 1.5)
IRON = Style(0.45, 0.05, (0.18, 0.42), 2.0, 0.05, 0.0, 0.0, 0.0, 1.0, 0.5, 2.0, 0.12, 0.03, 3.5)


def style_at(name: StyleName, gap: float = 1.0) -> Style:
    """Return the style moved towards the mean of both by `1 - gap`.

    ConfigError for an unknown style or a gap outside 0..1.
    """
    if name not in STYLES:
        raise ConfigError(f"style={name!r} must be one of {', '.join(STYLES)}")
    if not 0 <= gap <= 1:
        raise ConfigError(f"gap={gap} must lie between 0 (both styles alike) and 1 (fully apart)")
    own, other = (AUSTENITE, IRON) if name == "austenite" else (IRON, AUSTENITE)
    near = 0.5 + 0.5 * gap
    return Style(**{key: _between(a, getattr(other, key), near) for key, a in vars(own).items()})


def _between(own: Any, other: Any, near: float) -> Any:
    if isinstance(own, tuple):
        return tuple(_between(a, b, near) for a, b in zip(own, other, strict=True))
    return near * own + (1 - near) * other


def polycrystal_set(
    style: StyleName,
    seed: int,
    count: int,
    size: int = 128,
    gap: float = 1.0,
    first: int = 0,
    spacing: float = 30.0,
    name: str = "",
) -> MicrographSet:
    """Return `count` images of `style`, [count, size, size], with indices first, first + 1, ...

    Image i depends on (seed, style, i), size, gap and spacing alone, so disjoint index ranges are disjoint data on any
    machine. Masks are 3 pixels wide. `spacing` is the mean distance of grain centres, pixels.
    """
    look = style_at(style, gap)
    images, masks = np.empty((2, count, size, size), np.uint8)
    for position in range(count):
        rng = generator(seed, "polycrystal", style, first + position)
        grains = draw_grains(rng, size, spacing, look.bend)
        images[position], masks[position] = drawn(grains, look, rng), boundary_mask(grains)
    sources = tuple(f"{style}-{seed}-{first + position}" for position in range(count))
    return MicrographSet(name or style, images, masks, sources, None)


def render(mask: np.ndarray, style: StyleName, rng: np.random.Generator, gap: float = 1.0) -> np.ndarray:
    """Return how `style` would show the structure of a boundary mask [H, W] (1 = boundary): uint8 [H, W].

    This is the oracle that a learnt style generator can at best equal. A fresh `rng` gives fresh grain levels, twins,
    scratches and noise.
    """
    return drawn(grains_of(mask), style_at(style, gap), rng)


def grains_of(mask: np.ndarray) -> np.ndarray:
    """Return grain numbers int [H, W] of a boundary mask, its lines shared out to the nearest grain."""
    grains, found = ndimage.label(mask == 0)  # type: ignore[misc]
    if not found:
        return np.zeros(mask.shape, np.int32)
    nearest = ndimage.distance_transform_edt(grains == 0, return_distances=False, return_indices=True)
    return grains[tuple(np.asarray(nearest))] - 1


def draw_grains(rng: np.random.Generator, size: int, spacing: float, bend: float) -> np.ndarray:
    """Return grain numbers int [size, size] of a random Laguerre diagram with bent boundaries."""
    sites, weights = _sites(rng, size, spacing)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    rows += bend * smooth_field(rng, size, 8 + size // 32)
    columns += bend * smooth_field(rng, size, 8 + size // 32)
    reach = 2.2 * spacing + 3 * bend  # a heavy site can win no pixel further away than this
    nearest = np.full((size, size), np.inf, np.float32)
    grains = np.zeros((size, size), np.int32)
    for number, ((y, x), weight) in enumerate(zip(sites, weights, strict=True)):
        top, left = max(0, int(y - reach)), max(0, int(x - reach))
        window = np.s_[top : max(top, int(y + reach)), left : max(left, int(x + reach))]
        power = (rows[window] - y) ** 2 + (columns[window] - x) ** 2 - weight
        won = power < nearest[window]
        np.copyto(nearest[window], power, where=won)
        np.copyto(grains[window], number, where=won)
    return grains


def _sites(rng: np.random.Generator, size: int, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Return sites float32 [n, 2] on a jittered grid with holes, reaching past the frame, and Laguerre weights [n]."""
    marks = np.arange(-1.5 * spacing, size + 1.5 * spacing, spacing)
    grid = np.stack(np.meshgrid(marks, marks, indexing="ij"), -1).reshape(-1, 2)
    grid = grid + spacing * rng.uniform(-0.45, 0.45, grid.shape) + spacing * rng.uniform(0, 1, 2)
    weights = 0.35 * spacing**2 / 2 * rng.standard_normal(len(grid))
    kept = rng.random(len(grid)) > 0.12
    return grid[kept].astype(np.float32), weights[kept].astype(np.float32)


def boundary_mask(grains: np.ndarray) -> np.ndarray:
    """Return the boundary of a grain map as a line 3 pixels wide, uint8 [H, W], 1 = boundary."""
    edges = np.pad(_edges(grains), 1)
    rows = edges[:-2] | edges[1:-1] | edges[2:]
    return (rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]).astype(np.uint8)


def _edges(grains: np.ndarray) -> np.ndarray:
    """Return where a grain differs from its right or lower neighbour, bool [H, W]."""
    edges = np.zeros(grains.shape, bool)
    edges[:-1] |= grains[:-1] != grains[1:]
    edges[:, :-1] |= grains[:, :-1] != grains[:, 1:]
    return edges


def drawn(grains: np.ndarray, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Return a grain map [H, W] as the style shows it, uint8 [H, W]; H == W."""
    size = len(grains)
    levels = style.base + style.contrast * rng.standard_normal(grains.max() + 1).astype(np.float32)
    image = levels[grains]
    if style.twins > 0:
        image += _twins(grains, style, rng)
    image -= _lines(grains, style, rng)
    if style.pits > 0:
        _pit(image, style, rng)
    image += _scratches(size, style, rng)
    image = ndimage.gaussian_filter(image, style.blur, truncate=2.5)
    image *= 1 + style.light * smooth_field(rng, size, 3)
    image += style.noise * rng.standard_normal(image.shape, np.float32)
    return (255 * np.clip(image, 0, 1) + 0.5).astype(np.uint8)


def _lines(grains: np.ndarray, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Return how much darker the boundaries make each pixel; depth varies along them, and in places fades to 0."""
    from scipy.special import erfinv

    size = len(grains)
    least, most = style.line_depth
    edges = _edges(grains).astype(np.float32)
    if style.line_width > 1:
        second = (style.line_width - 1) * edges
        np.maximum(edges[1:], second[:-1], out=edges[1:])
        np.maximum(edges[:, 1:], second[:, :-1], out=edges[:, 1:])
    depth = least + (most - least) * np.clip(0.5 + 0.5 * smooth_field(rng, size, 4 + size // 16), 0, 1)
    if style.fading > 0:
        # A unit normal field lies below -z over a share Phi(-z) of the image; the ramp makes the fading gradual.
        threshold = float(np.sqrt(2) * float(erfinv(1 - 2 * style.fading)))
        depth *= np.clip(2.0 * (smooth_field(rng, size, 4 + size // 16) + threshold) + 0.2, 0.1, 1.0)
    return edges * depth


def _twins(grains: np.ndarray, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Return what twin bands add: a straight band through the grain's middle with its own level and dark edges."""
    count = grains.max() + 1
    flat, size = grains.ravel(), len(grains)
    pixels = np.maximum(np.bincount(flat, minlength=count), 1)
    rows = np.bincount(flat, np.repeat(np.arange(size), size), count) / pixels
    columns = np.bincount(flat, np.tile(np.arange(size), size), count) / pixels
    radius = np.sqrt(pixels / np.pi)
    angle = rng.uniform(0, np.pi, count)
    half = radius * rng.uniform(0.15, 0.35, count)
    shift = radius * rng.uniform(-0.4, 0.4, count)
    level = style.twin_contrast * rng.standard_normal(count)
    carried = rng.random(count) < style.twins
    normal_y, normal_x = np.sin(angle) * carried, np.cos(angle) * carried
    half = np.where(carried, half, -9.0)  # an untwinned grain lies wholly outside its band
    offset = normal_y * rows + normal_x * columns + shift
    table = np.stack([normal_y, normal_x, offset, half, level]).astype(np.float32)[:, grains]
    along = np.arange(size, dtype=np.float32)
    outside = np.abs(table[0] * along[:, None] + table[1] * along[None] - table[2]) - table[3]
    return np.where(outside < 0, table[4], 0) - style.twin_depth * (np.abs(outside) < 0.8)


def _pit(image: np.ndarray, style: Style, rng: np.random.Generator) -> None:
    """Darken single pixels and their neighbours in place, as etch pits do."""
    count = rng.poisson(style.pits * image.size / 1000)
    rows, columns = rng.integers(0, image.shape[0] - 1, count), rng.integers(0, image.shape[1] - 1, count)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        image[rows + down, columns + right] -= 0.25


def _scratches(size: int, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Return what bright straight scratches add [size, size]."""
    along = np.arange(size, dtype=np.float32)
    image = np.zeros((size, size), np.float32)
    for _ in range(rng.poisson(style.scratches)):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.3, 0.3) * size
        away = np.sin(angle) * (along[:, None] - size / 2) + np.cos(angle) * (along[None] - size / 2) - offset
        image += rng.uniform(0.1, 0.25) * (np.abs(away) < 0.7)
    return image


def smooth_field(rng: np.random.Generator, size: int, knots: int) -> np.ndarray:
    """Return a smooth random field [size, size] float32 of mean 0 and standard deviation near 1."""
    spread = _spread(size, knots)
    return spread @ rng.standard_normal((knots, knots)).astype(np.float32) @ spread.T


@lru_cache(maxsize=64)
def _spread(size: int, knots: int) -> np.ndarray:
    """Return the matrix [size, knots] of a Gaussian interpolation whose rows have unit length (so variances stay)."""
    places = np.linspace(0, knots - 1, size)[:, None] - np.arange(knots)
    weights = np.exp(-(places**2) / (2 * 0.6**2))
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)
