"""The autoencoder in spatial tiles: memory that depends on the tile and not on the image, on one device or on many.

Neighbouring tiles overlap, and where they do their results are blended with weights that rise linearly:

    y = sum_k w_k D(z_k),    w_k(i, j) = u_k(i) v_k(j),    sum_k w_k = 1

All tiles of an image have one size and are spread evenly, so one compiled program serves all of them. Each has a cache
of its own (see `vae`), so a video of any length is processed chunk by chunk in constant memory. With a mesh, as many
tiles are processed at a time as its axis has devices, and every device keeps the caches of its own tiles. The blended
image lies on all devices.

One tile that covers the image gives the result of the whole image, to the bit. Otherwise a tile does not see beyond
its edges, and results differ near the seams by what lies there; the overlap hides it.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from nova_jax.models.vae import VAE
from nova_jax.parallel import distributed
from nova_jax.types import Params

Video = Float[Array, "b f h w c"] | Float[np.ndarray, "b f h w c"]
Result = Float[Array, "b g i j d"]


class Placed(NamedTuple):
    """One tile: its first row and column, and the weights of its rows and columns, all in the units of `place`."""

    row: int
    column: int
    row_weights: np.ndarray
    column_weights: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles:
    """How images are cut.

    Attributes:
        size: rows and columns of a tile, in latents; a smaller image is one tile.
        overlap: latents that neighbours share, at least.
        cache_dtype: in which the past of each tile is kept, for example bfloat16 to halve it; None: as it is computed.
    """

    size: tuple[int, int] = (32, 32)
    overlap: int = 8
    cache_dtype: Any = None

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < min(self.size):
            raise ValueError(f"overlap={self.overlap} must lie in 0 .. {min(self.size) - 1}, below size={self.size}")

    def place(self, height: int, width: int, scale: int = 1) -> list[Placed]:
        """All tiles of an image of height x width latents, row by row, in units of 1 / scale latents."""
        rows = _cut(height, self.size[0], self.overlap, scale)
        columns = _cut(width, self.size[1], self.overlap, scale)
        return [Placed(row, column, u, v) for row, u in rows for column, v in columns]


def decode(
    vae: VAE, params: Params, latents: Video, tiles: Tiles, *, mesh: Mesh | None = None, axis: str = "data"
) -> Result:
    """Pixels of a whole image or video in [-1, 1]. See `decode_stream`."""
    (pixels,) = decode_stream(vae, params, [latents], tiles, mesh=mesh, axis=axis)
    return pixels


def encode(
    vae: VAE, params: Params, pixels: Video, tiles: Tiles, *, mesh: Mesh | None = None, axis: str = "data"
) -> tuple[Result, Result]:
    """Mean and log-variance of q(z | x) of a whole image or video. See `encode_stream`."""
    (moments,) = encode_stream(vae, params, [pixels], tiles, mesh=mesh, axis=axis)
    return moments


def decode_stream(
    vae: VAE,
    params: Params,
    chunks: Iterable[Array | np.ndarray],
    tiles: Tiles,
    *,
    mesh: Mesh | None = None,
    axis: str = "data",
) -> Iterator[Result]:
    """Yields the pixels of each chunk of one video's latents, in memory that does not grow with their number.

    Not to be compiled: it runs one program per tile.

    Args:
        vae: the autoencoder.
        params: of it.
        chunks: latents (not normalised), b f h w c, of any number of frames; the first chunk begins the video.
        tiles: see there.
        mesh: devices to spread the tiles over; None: the default device alone.
        axis: of the mesh, whose devices take one tile each.
    """
    space = vae.compression[1]
    for (pixels,) in _stream(_program(vae, "decode", tiles.cache_dtype, mesh, axis), params, chunks, tiles, (1, space)):
        yield pixels


def encode_stream(
    vae: VAE,
    params: Params,
    chunks: Iterable[Array | np.ndarray],
    tiles: Tiles,
    *,
    mesh: Mesh | None = None,
    axis: str = "data",
) -> Iterator[tuple[Result, Result]]:
    """Yields mean and log-variance of each chunk of one video's pixels; otherwise as `decode_stream`.

    Raises:
        ValueError: frames, height or width that the autoencoder cannot compress.
    """
    space = vae.compression[1]
    results: Iterator[Any] = _stream(
        _program(vae, "encode", tiles.cache_dtype, mesh, axis), params, chunks, tiles, (space, 1)
    )
    yield from results


class Program(NamedTuple):
    """Compiled for `width` tiles at a time: read them, (params, tiles, caches) -> (results, caches), blend them."""

    width: int
    put: Callable[[Any], Any]  # onto all devices
    read: Callable[..., Array]
    run: Callable[[Params, Array, Any], tuple[Any, Any]]
    blend: Callable[..., tuple[Array, ...]]


@functools.lru_cache(maxsize=16)
def _program(vae: VAE, what: Literal["decode", "encode"], cache_dtype: Any, mesh: Mesh | None, axis: str) -> Program:
    def step(params: Params, group: Array, caches: Any) -> tuple[Any, Any]:
        """One tile, with a leading axis of one; what every device does."""
        cache = jax.tree.map(lambda a: a[0], caches)
        if what == "decode":
            pixels, cache = vae.decode_chunk(params, group[0], cache)
            results = (pixels,)
        else:
            *results, cache = vae.encode_chunk(params, group[0], cache)
        if cache_dtype is not None:
            cache = jax.tree.map(lambda a: a.astype(cache_dtype), cache)
        return jax.tree.map(lambda a: a[None], (tuple(results), cache))

    if mesh is None:
        blend = jax.jit(_blend, static_argnames="size", donate_argnums=0)
        read = jax.jit(_read, static_argnames="size")
        return Program(1, lambda tree: tree, read, jax.jit(step, donate_argnums=2), blend)
    if axis not in mesh.shape:
        raise ValueError(f"axis {axis!r} is not one of the mesh: {', '.join(mesh.axis_names)}")
    spec, everywhere = PartitionSpec(axis), NamedSharding(mesh, PartitionSpec())
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(PartitionSpec(), spec, spec), out_specs=(spec, spec), check_vma=False
    )
    return Program(
        mesh.shape[axis],
        functools.partial(jax.tree.map, lambda leaf: _put(leaf, everywhere)),
        jax.jit(_read, static_argnames="size", out_shardings=NamedSharding(mesh, spec)),
        jax.jit(mapped, donate_argnums=2),
        jax.jit(_blend, static_argnames="size", donate_argnums=0, out_shardings=everywhere),
    )


def _stream(
    program: Program, params: Params, chunks: Iterable[Array | np.ndarray], tiles: Tiles, scales: tuple[int, int]
) -> Iterator[tuple[Array, ...]]:
    """Results of every chunk, blended; `scales` are rows per latent of what goes in and of what comes out."""
    params = program.put(params)
    caches: dict[int, Any] = {}
    for chunk in chunks:
        if chunk.shape[2] % scales[0] or chunk.shape[3] % scales[0]:
            raise ValueError(f"height and width must be multiples of {scales[0]}; got {chunk.shape[2:4]}")
        height, width = (size // scales[0] for size in chunk.shape[2:4])
        sources, places = (tiles.place(height, width, scale) for scale in scales)
        video, canvases = program.put(chunk), None
        for first in range(0, len(sources), program.width):
            # Devices without a tile repeat the last one, with weights of zero.
            numbers = [min(first + k, len(sources) - 1) for k in range(program.width)]
            group = program.read(video, _corners(sources, numbers), size=_size(sources[0]))
            results, caches[first] = program.run(params, group, caches.get(first))
            weights = np.stack([np.outer(places[k].row_weights, places[k].column_weights) for k in numbers])
            weights[len(sources) - first :] = 0
            size = (height * scales[1], width * scales[1])
            canvases = program.blend(canvases, results, _corners(places, numbers), weights, size=size)
        assert canvases is not None
        yield canvases


def _read(video: Array, corners: Int[Array, "k 2"], size: tuple[int, int]) -> Float[Array, "k b f i j c"]:
    b, f, _, _, c = video.shape
    parts = [jax.lax.dynamic_slice(video, (0, 0, at[0], at[1], 0), (b, f, *size, c)) for at in corners]
    return jnp.stack(parts)


def _blend(
    canvases: tuple[Array, ...] | None,
    results: tuple[Array, ...],
    corners: Int[Array, "k 2"],
    weights: Float[Array, "k i j"],
    size: tuple[int, int],
) -> tuple[Array, ...]:
    """Adds weighted tiles to the images of this size that they are parts of; None: to black ones."""
    if canvases is None:
        canvases = tuple(jnp.zeros((*r.shape[1:3], *size, r.shape[-1])) for r in results)
    blended = []
    for canvas, tiles in zip(canvases, results, strict=True):
        for tile, at, weight in zip(tiles, corners, weights, strict=True):
            place = (0, 0, at[0], at[1], 0)
            part = jax.lax.dynamic_slice(canvas, place, tile.shape) + tile * weight[None, None, :, :, None]
            canvas = jax.lax.dynamic_update_slice(canvas, part, place)
        blended.append(canvas)
    return tuple(blended)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    is_there = isinstance(leaf, jax.Array) and leaf.sharding.device_set == sharding.device_set
    return jax.device_put(leaf, sharding) if is_there else distributed.place(leaf, sharding)


def _corners(tiles: Sequence[Placed], numbers: Sequence[int]) -> Int[np.ndarray, "k 2"]:
    return np.array([(tiles[k].row, tiles[k].column) for k in numbers], np.int32)


def _size(tile: Placed) -> tuple[int, int]:
    return len(tile.row_weights), len(tile.column_weights)


def _cut(extent: int, size: int, overlap: int, scale: int) -> list[tuple[int, np.ndarray]]:
    """First position and weights of every tile along one axis of `extent` latents."""
    size = min(size, extent)
    count = 1 if size == extent else -(-(extent - overlap) // (size - overlap))
    firsts = [k * (extent - size) // max(count - 1, 1) * scale for k in range(count)]
    extent, size = extent * scale, size * scale
    weights = []
    for k, first in enumerate(firsts):
        position = np.arange(1, size + 1)
        before = firsts[k - 1] + size - first if k else 0
        after = first + size - firsts[k + 1] if k + 1 < count else 0
        rise = np.minimum(position / (before + 1), position[::-1] / (after + 1))
        weights.append(np.minimum(rise, 1.0))
    total = np.zeros(extent)
    for first, weight in zip(firsts, weights, strict=True):
        total[first : first + size] += weight
    parts = [weight / total[first : first + size] for first, weight in zip(firsts, weights, strict=True)]
    return [(first, part.astype(np.float32)) for first, part in zip(firsts, parts, strict=True)]
