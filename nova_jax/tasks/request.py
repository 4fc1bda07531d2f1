"""What every request is: a frozen dataclass whose construction fails with all of its problems, or leaves it valid."""

import abc
import dataclasses
from collections.abc import Iterable

from nova_jax.tasks.limits import CANVAS, Limits
from nova_jax.tasks.problems import Problem, refuse


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Request(abc.ABC):
    """One thing asked for. Requests hold arrays, so they compare and hash by identity.

    Attributes:
        limits: The sizes that the model takes.

    Raises:
        InvalidRequest: with every problem of the request.
    """

    limits: Limits = CANVAS

    __no_type_check__ = True  # `problems` looks at types as well, to report all at once

    def __post_init__(self) -> None:
        refuse(self.problems())

    @abc.abstractmethod
    def problems(self) -> Iterable[Problem]:
        """Every rule that the fields break."""

    @property
    @abc.abstractmethod
    def size(self) -> tuple[int, int]:
        """(height, width) of the output in pixels."""
