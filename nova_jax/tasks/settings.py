"""What all drawing requests can be told about their output: size, number, seed, guidance."""

import dataclasses
import typing
from typing import Literal

from nova_jax.tasks import checks
from nova_jax.tasks.limits import CFG_SCALE, COUNT, SEED, Limits
from nova_jax.tasks.problems import Problem, refuse

Quality = Literal["standard", "premium"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How images are drawn; `imageGenerationConfig` in JSON.

    Attributes:
        width: In pixels; None: `limits.default_side` (1024 of `CANVAS`), or the source's where an image is edited.
        height: Likewise.
        quality: How much work to spend.
        cfg_scale: Strength of classifier-free guidance, 1.1 to 10; low is freer, high holds to the text.
        seed: 0 to 2,147,483,646.
        count: How many images, 1 to 5.

    Raises:
        InvalidRequest: with every value of the wrong type or out of range. The request holds width and height against
            its limits.
    """

    width: int | None = None
    height: int | None = None
    quality: Quality = "standard"
    cfg_scale: float | int = 6.5
    seed: int = 12
    count: int = 1

    __no_type_check__ = True  # types are checked below, to report all at once

    def __post_init__(self) -> None:
        sides = {"width": self.width, "height": self.height}
        refuse(
            [
                *(
                    Problem(name, checks.show(side), "a whole number of pixels")
                    for name, side in sides.items()
                    if side is not None and not checks.is_whole(side)
                ),
                *checks.choice("quality", self.quality, typing.get_args(Quality)),
                *checks.number("cfg_scale", self.cfg_scale, CFG_SCALE),
                *checks.whole("seed", self.seed, SEED),
                *checks.whole("count", self.count, COUNT),
            ]
        )

    def size(self, limits: Limits) -> tuple[int, int]:
        """(height, width) in pixels, the default where none is given."""
        height, width = (limits.default_side if side is None else side for side in (self.height, self.width))
        return height, width

    def check_size(self, limits: Limits) -> list[Problem]:
        """What is wrong with the size, where the request decides it."""
        height, width = self.size(limits)
        problems = [
            Problem(f"settings.{name}", checks.show(side), limits.sides)
            for name, side in (("width", width), ("height", height))
            if not limits.is_side(side)
        ]
        given = f"{width} beside a height of {height}"
        refusals = limits.refusals_of_shape(width, height)
        return problems + [Problem("settings.width", given, allowed) for allowed in refusals]

    def check_no_size(self) -> list[Problem]:
        """What is wrong with the size, where the output has the source's: it must not be given."""
        return [
            Problem(f"settings.{name}", checks.show(side), "left out: the output has the size of its source")
            for name, side in (("width", self.width), ("height", self.height))
            if side is not None
        ]
