"""The autoencoder: pixels to visual tokens and back. One causal class for images and video.

    encode   pixels  b (1 + n t) h w 3  ->  mean, logvar  b (1 + n) h/s w/s c       q(z | x) = N(mean, exp(logvar))
    decode   latents b (1 + n)   h w c  ->  pixels  b (1 + n t) (h s) (w s) 3

No output depends on later frames, and the first frame stands alone, so an image is a video of one frame. A video may be
processed in chunks: the first of 1 + n t frames (1 + n latents), later ones of n t (n latents), n >= 0 free for every
chunk. The cache that travels from chunk to chunk has constant size, and the result equals that of the whole video.

`wan21()` (4 x 8 x 8, 16 channels) and `wan22()` (4 x 16 x 16, 48 channels) are the public autoencoders of Wan (Wan team
2025, arXiv 2503.20314, section 4.1). `tiny()` has no time compression and is small enough to train on a CPU;
`small_video()` and, for a CPU, `tiny_video()` (4 x 4 x 4, 16 channels) are for small clips, `small_image()` is what the
first may start from (`inflation`).
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from nova_jax.layers import convolution
from nova_jax.models import vae_network
from nova_jax.types import Params, Pixels

Latents = Float[Array, "b g i j d"]
Cache = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAE:
    """A variational autoencoder of images and video; methods are pure functions of `params`.

    Attributes:
        latent_channels: c of the latents.
        width: channels at the encoder's full resolution.
        decoder_width: the same of the decoder; None: as the encoder.
        width_multipliers: channels of each level, in units of the width; between two levels the resolution halves.
        halves_time: for each step from level to level, whether time is halved.
        halves_space: likewise whether height and width are; empty: always.
        num_blocks: residual blocks per encoder level; the decoder has one more.
        patch_size: pixels are folded into channels by patches before the first convolution.
        is_temporal: convolutions reach two frames back; False makes frames independent (1 x 3 x 3 kernels).
        has_attention: attention among the pixels of a frame at the lowest resolution.
        has_shortcuts: parameter-free shortcuts around the levels; without them upsampling halves the channels.
        latents_mean: mean of every latent channel over data, for `normalize`; empty: zeros.
        latents_std: standard deviation likewise; empty: ones.
        dtype: computation; parameters are float32, and so are the results.
    """

    latent_channels: int = 16
    width: int = 96
    decoder_width: int | None = None
    width_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    halves_time: tuple[bool, ...] = (False, True, True)
    halves_space: tuple[bool, ...] = ()
    num_blocks: int = 2
    patch_size: int = 1
    is_temporal: bool = True
    has_attention: bool = True
    has_shortcuts: bool = False
    latents_mean: tuple[float, ...] = ()
    latents_std: tuple[float, ...] = ()
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Raises ValueError for fields that do not fit together."""
        for name in ("latent_channels", "width", "num_blocks", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if len(self.halves_time) != len(self.width_multipliers) - 1:
            raise ValueError(
                f"halves_time has {len(self.halves_time)} entries for the {len(self.width_multipliers) - 1} halvings "
                f"between the {len(self.width_multipliers)} levels of width_multipliers; give one for each"
            )
        if len(self.halves_space) not in (0, len(self.halves_time)):
            raise ValueError(
                f"halves_space has {len(self.halves_space)} entries and halves_time {len(self.halves_time)}; give none "
                "or as many"
            )
        if any(self.halves_time) and not self.is_temporal:
            raise ValueError("halves_time needs is_temporal=True: independent frames cannot be merged")
        for name in ("latents_mean", "latents_std"):
            count = len(getattr(self, name))
            if count not in (0, self.latent_channels):
                raise ValueError(
                    f"{name} has {count} entries; give none or one for each of {self.latent_channels} channels"
                )

    @property
    def compression(self) -> tuple[int, int, int]:
        """Frames, rows and columns of pixels per latent."""
        factors = self._factors()
        space = self.patch_size * math.prod(factor for _, factor in factors)
        return math.prod(factor for factor, _ in factors), space, space

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(f, h, w, c) of the latents of a video of `frames` x `height` x `width` pixels; ValueError if it has none."""
        self._check_size(frames - 1, height, width)
        time, space, _ = self.compression
        return 1 + (frames - 1) // time, height // space, width // space, self.latent_channels

    def init(self, key: PRNGKeyArray) -> Params:
        """Random parameters, {"encoder": ..., "decoder": ...}."""
        encoder_key, decoder_key = jax.random.split(key)
        _, space, _ = self.compression
        patches = jnp.zeros((1, 1, space // self.patch_size, space // self.patch_size, 3 * self.patch_size**2))
        latents = jnp.zeros((1, 1, 1, 1, self.latent_channels))
        return {
            "encoder": self._encoder().init(encoder_key, patches, None)["params"],
            "decoder": self._decoder().init(decoder_key, latents, None)["params"],
        }

    def encode(self, params: Params, pixels: Pixels) -> tuple[Latents, Latents]:
        """Mean and log-variance of q(z | x) for a whole image or video; latents are as they are, not normalised."""
        mean, logvar, _ = self.encode_chunk(params, pixels)
        return mean, logvar

    def decode(self, params: Params, latents: Latents) -> Pixels:
        """The image or video of (not normalised) latents, limited to [-1, 1]."""
        return jnp.clip(self.decode_unclipped(params, latents), -1.0, 1.0)

    def decode_unclipped(self, params: Params, latents: Latents) -> Pixels:
        """As `decode`, but without the limit, beyond which a training loss would have no gradient."""
        return self._decode(params, latents, None)[0]

    def encode_chunk(
        self, params: Params, pixels: Pixels, cache: Cache | None = None
    ) -> tuple[Latents, Latents, Cache]:
        """Mean, log-variance and the cache for the next chunk; `cache` None starts a video.

        The first chunk has 1 + n t frames, later ones n t. From then on the cache keeps its structure and shapes, so
        that `jax.lax.scan` can carry it over later chunks of equal length.
        """
        self._check_size(pixels.shape[1] - (cache is None), *pixels.shape[2:4])
        patches = convolution.pixels_to_channels(pixels, self.patch_size)
        moments, cache = _apply(self._encoder(), params["encoder"], patches, cache)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0), cache

    def decode_chunk(self, params: Params, latents: Latents, cache: Cache | None = None) -> tuple[Pixels, Cache]:
        """Pixels in [-1, 1] and the cache for the next chunk; `cache` None starts a video."""
        pixels, cache = self._decode(params, latents, cache)
        return jnp.clip(pixels, -1.0, 1.0), cache

    def encode_stream(self, params: Params, chunks: Iterable[Array]) -> Iterator[tuple[Latents, Latents]]:
        """Yields mean and log-variance for each chunk of one video, in constant memory."""
        step = jax.jit(self.encode_chunk)
        cache = None
        for chunk in chunks:
            mean, logvar, cache = step(params, chunk, cache)
            yield mean, logvar

    def decode_stream(self, params: Params, chunks: Iterable[Array]) -> Iterator[Pixels]:
        """Yields the pixels of each chunk of one video's latents, in constant memory."""
        step = jax.jit(self.decode_chunk)
        cache = None
        for chunk in chunks:
            pixels, cache = step(params, chunk, cache)
            yield pixels

    def sample(self, mean: Latents, logvar: Latents, key: PRNGKeyArray) -> Latents:
        """One draw from q(z | x)."""
        return mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype)

    def to_latents(self, params: Params, pixels: Pixels, key: PRNGKeyArray | None = None) -> Latents:
        """Normalised latents of a whole image or video: the mean of q(z | x), or with a key a draw from it."""
        mean, logvar = self.encode(params, pixels)
        return self.normalize(mean if key is None else self.sample(mean, logvar, key))

    def to_pixels(self, params: Params, latents: Latents) -> Pixels:
        """Pixels of normalised latents."""
        return self.decode(params, self.denormalize(latents))

    def normalize(self, latents: Latents) -> Latents:
        """Latents as the diffusion model sees them: zero mean and unit variance in every channel."""
        mean, std = self._statistics()
        return (latents - mean) / std

    def denormalize(self, latents: Latents) -> Latents:
        """Inverse of `normalize`."""
        mean, std = self._statistics()
        return latents * std + mean

    def _statistics(self) -> tuple[Float[Array, "1 1 1 1 c"], Float[Array, "1 1 1 1 c"]]:
        mean = jnp.asarray(self.latents_mean or (0.0,) * self.latent_channels)
        std = jnp.asarray(self.latents_std or (1.0,) * self.latent_channels)
        return mean.reshape(1, 1, 1, 1, -1), std.reshape(1, 1, 1, 1, -1)

    def _check_size(self, frames: int, height: int, width: int) -> None:
        """`frames` counts those after the first of the video."""
        time, space, _ = self.compression
        if frames < 0 or frames % time:
            raise ValueError(
                f"a video has 1 + {time} n frames and a later chunk of it {time} n; got {frames} after the first frame"
            )
        if height % space or width % space:
            raise ValueError(f"height and width must be multiples of {space}; got {height} x {width}")

    def _decode(self, params: Params, latents: Latents, cache: Cache | None) -> tuple[Pixels, Cache]:
        patches, cache = _apply(self._decoder(), params["decoder"], latents, cache)
        return convolution.channels_to_pixels(patches.astype(jnp.float32), self.patch_size), cache

    def _factors(self) -> tuple[vae_network.Factors, ...]:
        """(time, space) by which the resolution falls from level to level."""
        space = self.halves_space or (True,) * len(self.halves_time)
        return tuple((1 + halved, 1 + shrunk) for halved, shrunk in zip(self.halves_time, space, strict=True))

    def _encoder(self) -> vae_network.Encoder:
        return vae_network.Encoder(
            widths=tuple(self.width * m for m in (1, *self.width_multipliers)),
            factors=(*self._factors(), (1, 1)),
            num_blocks=self.num_blocks,
            out_channels=2 * self.latent_channels,
            variant=self._variant(),
        )

    def _decoder(self) -> vae_network.Decoder:
        width, multipliers = self.decoder_width or self.width, self.width_multipliers[::-1]
        return vae_network.Decoder(
            widths=tuple(width * m for m in (multipliers[0], *multipliers)),
            factors=(*self._factors()[::-1], (1, 1)),
            num_blocks=self.num_blocks + 1,
            out_channels=3 * self.patch_size**2,
            variant=self._variant(),
        )

    def _variant(self) -> vae_network.Variant:
        return vae_network.Variant(
            taps=3 if self.is_temporal else 1,
            has_attention=self.has_attention,
            has_shortcuts=self.has_shortcuts,
            dtype=self.dtype,
        )


def _apply(
    network: vae_network.Encoder | vae_network.Decoder, params: Params, x: Array, cache: Cache | None
) -> tuple[Array, Cache]:
    y, new = network.apply({"params": params}, x, cache)  # pyright: ignore[reportGeneralTypeIssues]
    return y, new


def wan21(**fields: Any) -> VAE:
    """The autoencoder of Wan 2.1: 126.9 M parameters, 4 x 8 x 8 pixels per latent, 16 channels."""
    return dataclasses.replace(VAE(latents_mean=_WAN21_MEAN, latents_std=_WAN21_STD), **fields)


def wan22(**fields: Any) -> VAE:
    """The autoencoder of Wan 2.2 TI2V-5B: 704.7 M parameters, 4 x 16 x 16 pixels per latent, 48 channels."""
    vae = VAE(
        latent_channels=48,
        width=160,
        decoder_width=256,
        patch_size=2,
        has_shortcuts=True,
        latents_mean=_WAN22_MEAN,
        latents_std=_WAN22_STD,
    )
    return dataclasses.replace(vae, **fields)


def tiny(**fields: Any) -> VAE:
    """For small images on a CPU: 0.73 M parameters, 1 x 4 x 4 pixels per latent, 4 channels, frames independent."""
    vae = VAE(
        latent_channels=4,
        width=64,
        width_multipliers=(1,),
        halves_time=(),
        patch_size=4,
        is_temporal=False,
        has_attention=False,
    )
    return dataclasses.replace(vae, **fields)


def small_video(**fields: Any) -> VAE:
    """For clips of small images: 3.1 M parameters, 4 x 4 x 4 pixels per latent, 16 channels.

    Patches of 2 x 2 pixels come first and the second halving of time leaves space as it is, so that most of the work
    is done at a quarter of the pixels: encoding and decoding 25 frames of 36 x 64 costs 24 GFLOP, training on them 71.
    """
    vae = VAE(
        latent_channels=16,
        width=64,
        width_multipliers=(1, 1, 1),
        halves_time=(True, True),
        halves_space=(True, False),
        num_blocks=1,
        patch_size=2,
        has_attention=False,
    )
    return dataclasses.replace(vae, **fields)


def tiny_video(**fields: Any) -> VAE:
    """`small_video()` with patches of 4 x 4 pixels, so that every convolution works at a sixteenth of the pixels.

    3.2 M parameters, 4 x 4 x 4 pixels per latent, 16 channels; training on 25 frames of 36 x 64 costs 31 GFLOP.
    """
    return dataclasses.replace(small_video(), **{"patch_size": 4, "halves_space": (False, False), **fields})


def small_image(**fields: Any) -> VAE:
    """`small_video()` without time, which can become it (`inflation.inflate`): 1 M parameters."""
    return dataclasses.replace(small_video(), **{"is_temporal": False, "halves_time": (False, False), **fields})


# Mean and standard deviation of each latent channel, from the configurations published with the weights (Apache-2.0).
_WAN21_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_WAN21_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
_WAN22_MEAN = (
    *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557),
    *(-0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825),
    *(-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
    *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230),
    *(-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748),
    *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
)
_WAN22_STD = (
    *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013),
    *(0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978),
    *(0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
    *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093),
    *(0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
    *(0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
)
