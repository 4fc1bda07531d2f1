"""The teacher as the methods of this package evaluate it: one velocity, guidance folded in.

    v_g(x, t, c) = v(x, t, 0) + w (v(x, t, c) - v(x, t, 0))      inside the interval of times;  v(x, t, c) outside

0 is the null condition (`diffusion.conditioning.null`). With `max_scale` the scale w is drawn for each sample,
log-uniformly from `scale` to `max_scale`, and the student reads it from `cond.guidance_scale`: one student for all
scales (Meng et al. 2023, arXiv 2210.03142, section 3.1). The interval is that of Kynkaanniemi et al. 2024, 2404.07724.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from nova_jax.diffusion import conditioning, prediction
from nova_jax.types import Conditioning, Network, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """How the teacher is guided, and whether the scale is an input of the student.

    Attributes:
        scale: w; 1 is the conditional teacher alone, and costs one evaluation instead of two.
        max_scale: if given, w is drawn from scale to max_scale for each sample.
        interval: (low, high); at times t <= low or t > high the teacher is not guided.
        parts: of the condition that are null in the unconditional evaluation.
    """

    scale: float = 1.0
    max_scale: float | None = None
    interval: tuple[float, float] | None = None
    parts: tuple[str, ...] = ("text", "pooled")

    def __post_init__(self) -> None:
        if not self.scale >= 0 or (self.max_scale is not None and not 0 < self.scale < self.max_scale):
            raise ValueError(
                f"scale={self.scale} must be 0 or more, and max_scale={self.max_scale} None or above a positive scale"
            )
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1] <= 1:
            raise ValueError(f"a guidance interval is (low, high) with 0 <= low < high <= 1, got {self.interval}")

    @property
    def is_needed(self) -> bool:
        """Whether the unconditional teacher is ever evaluated."""
        return self.scale != 1 or self.max_scale is not None

    @property
    def evaluations(self) -> int:
        """Network evaluations of the teacher for one guided velocity."""
        return 2 if self.is_needed else 1

    def sample(self, key: PRNGKeyArray, batch_size: int) -> Float[Array, " b"] | None:
        """A scale for each sample, or None where it is fixed."""
        if self.max_scale is None:
            return None
        u = jax.random.uniform(key, (batch_size,))
        return self.scale * (self.max_scale / self.scale) ** u

    def combine(
        self, cond: Float[Array, "b *dims"], uncond: Float[Array, "b *dims"], t: Float[Array, " b"], scale: Array | None
    ) -> Float[Array, "b *dims"]:
        """v_g at time t from the conditional and the unconditional velocity; `scale` as drawn."""
        w = jnp.full(t.shape, self.scale) if scale is None else scale
        if self.interval is not None:
            w = jnp.where((t > self.interval[0]) & (t <= self.interval[1]), w, 1.0)
        return uncond + prediction.right_pad(w, cond) * (cond - uncond)

    def velocity(
        self,
        network: Network,
        params: Params,
        x: Float[Array, "b *dims"],
        t: Float[Array, " b"],
        cond: Conditioning,
        scale: Array | None = None,
    ) -> Float[Array, "b *dims"]:
        """The frozen teacher's guided velocity, in float32, without a gradient."""
        cond = cond._replace(r=None, guidance_scale=None)
        if not self.is_needed:
            return jax.lax.stop_gradient(network(params, x, t, cond).astype(jnp.float32))
        left_out = conditioning.null(cond, parts=self.parts)
        x, t_twice, cond = conditioning.interleave((x, t, cond), (x, t, left_out))
        of_cond, of_null = conditioning.split(network(params, x, t_twice, cond).astype(jnp.float32), 2)
        return jax.lax.stop_gradient(self.combine(of_cond, of_null, t, scale))
