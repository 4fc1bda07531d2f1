"""Flow map and distribution matching at once: one student, two losses.

    loss = flow_scale * MeanFlow(student) + matching_scale * DMD2(student)

The flow-map loss sees noised data and covers every mode (forward divergence); matching sees the student's own samples,
reached along its own flow map, and sharpens them (reverse divergence). A scale of 0 leaves its part out, so pure
MeanFlow, pure DMD and everything between are one code path.

Zheng et al. 2025, rCM, arXiv 2510.08431 (consistency to r = 0, `pairs=ToData()`, scales 100 and 1 there for their sum
over elements); Gu et al. 2026, AnyFlow, 2605.13724 (any pair of times, backward simulation by the flow map).
"""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, PRNGKeyArray

from nova_jax.distillation import dmd, mean_flow, method
from nova_jax.types import Batch, Metrics, Params, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joint(method.Method):
    """Both losses on one student; `guidance` and `sampler` hold for both.

    Attributes:
        flow: the flow-map part, from the teacher.
        matching: the distribution-matching part.
        flow_scale: weight of `flow`.
        matching_scale: weight of `matching`.
    """

    flow: mean_flow.MeanFlow = mean_flow.MeanFlow()
    matching: dmd.DMD2 = dmd.DMD2()
    flow_scale: float = 1.0
    matching_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.flow.source != "teacher":
            raise ValueError("flow.source must be teacher: the matching part has one anyway")
        if min(self.flow_scale, self.matching_scale) < 0 or self.flow_scale + self.matching_scale == 0:
            raise ValueError(
                f"flow_scale={self.flow_scale} and matching_scale={self.matching_scale} must be 0 or more, one above 0"
            )

    @property
    def needs_jvp(self) -> bool:  # noqa: D102 (the base says it)
        return self.flow_scale > 0

    @property
    def forwards(self) -> float | int:  # noqa: D102
        flow, matching = self._parts()
        return (flow.forwards if self.flow_scale else 0) + (matching.forwards if self.matching_scale else 0)

    @property
    def judged_layers(self) -> int:  # noqa: D102
        return self.matching.judged_layers if self.matching_scale else 0

    def memory(  # noqa: D102
        self, networks: method.Networks, params: Params, teacher: Params | None
    ) -> dict[str, Any]:
        return self._main.memory(networks, params, teacher)

    def prepare(  # noqa: D102
        self, networks: method.Networks, state: TrainState, batch: Batch, key: PRNGKeyArray, *, accumulate: int
    ) -> tuple[TrainState, PRNGKeyArray, Metrics]:
        return self._main.prepare(networks, state, batch, key, accumulate=accumulate)

    def loss(
        self, networks: method.Networks, params: Params, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, Metrics]:
        """The weighted sum, and both parts as metrics; flow_scale has no effect where it is the only part."""
        flow, matching = self._parts()
        if not self.matching_scale:
            return flow.loss(networks, params, state, batch, key)
        key_flow, key_matching = jax.random.split(key)
        matched, metrics = matching.loss(networks, params, state, batch, key_matching)
        total, metrics = self.matching_scale * matched, {**metrics, "matching": matched}
        if self.flow_scale:
            flowed, more = flow.loss(networks, params, state, batch, key_flow)
            total, metrics = total + self.flow_scale * flowed, {**metrics, **more, "flow": flowed}
        return total, metrics

    def _parts(self) -> tuple[mean_flow.MeanFlow, dmd.DMD2]:
        """The two methods with the common guidance and sampler."""
        common = {"guidance": self.guidance, "sampler": self.sampler}
        return dataclasses.replace(self.flow, **common), dataclasses.replace(self.matching, **common)

    @property
    def _main(self) -> method.Method:
        """The part whose memory is that of both."""
        flow, matching = self._parts()
        return matching if self.matching_scale else flow
