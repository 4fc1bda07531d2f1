"""What is wrong with a request: every violation at once, each as one sentence.

seed is -1; it must be a whole number from 0 to 2,147,483,646.
inPaintingParams.maskImage is missing; it must be given, or a mask prompt in its place.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Problem(NamedTuple):
    """One violation; `str` makes the sentence.

    Attributes:
        field: of the dataclass, or the JSON path when the request came as JSON.
        given: what stands there, ready to read after "is".
        allowed: what may stand there, ready to read after "it must be".
    """

    field: str
    given: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.field} is {self.given}; it must be {self.allowed}."


class InvalidRequest(ValueError):
    """A request that breaks a rule; `problems` lists all that it breaks, and the message has a line for each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def refuse(problems: Iterable[Problem]) -> None:
    """Raises InvalidRequest with all the problems, if there are any."""
    problems = tuple(problems)
    if problems:
        raise InvalidRequest(problems)
