"""A power law through a few measured distances, and how much more training it says a goal takes.

    (1)  d(n) = c n^-b,       log d = log c - b log n

with n what was spent (samples, FLOPs) and d how far a score is from the best there is. Weighted least squares in (1):
the deviation of log d is that of d over d. The intervals of an extrapolation hold only as long as (1) does: a law
with a floor bends away from it.

Hestness et al. 2017, Deep learning scaling is predictable, empirically, arXiv 1712.00409; Kaplan et al. 2020, Scaling
laws for neural language models, 2001.08361.
"""

import math
from typing import NamedTuple

import numpy as np

from nova_jax.evaluation.intervals import Estimate
from nova_jax.evaluation.plots import Values

Z = 1.959964  # of a 95 % interval
DRAWS = 20_000


class PowerLaw(NamedTuple):
    """(1) around the middle of the measurements, where its two numbers err independently.

    Attributes:
        centre: Mean log n.
        level: log d there.
        level_error: Standard error of `level`.
        exponent: b; positive: more training helps.
        exponent_error: Standard error of `exponent`.
    """

    centre: float
    level: float
    level_error: float
    exponent: float
    exponent_error: float

    def at(self, spent: float) -> float:
        """The distance after so much."""
        return math.exp(self.level - self.exponent * (math.log(spent) - self.centre))

    def spent_for(self, distance: float) -> Estimate:
        """What must be spent until the distance is so small: {value, low, high}; infinite where it never is."""
        rng = np.random.default_rng(0)
        levels = self.level + self.level_error * rng.standard_normal(DRAWS)
        exponents = self.exponent + self.exponent_error * rng.standard_normal(DRAWS)
        spent = _solve(self.centre, levels, exponents, distance)
        low, high = np.quantile(spent, (0.025, 0.975), method="nearest")
        value = _solve(self.centre, np.array([self.level]), np.array([self.exponent]), distance)[0]
        return {"value": float(value), "low": float(low), "high": float(high)}


def fit(spent: Values, distances: Values, errors: Values) -> PowerLaw:
    """The law through measurements.

    Args:
        spent: What each cost, positive.
        distances: What each is short of, positive.
        errors: Their standard errors, positive.

    Raises:
        ValueError: Fewer than two different costs, or a number that is not positive.
    """
    n, d, e = (np.asarray(values, np.float64) for values in (spent, distances, errors))
    if len(set(n.tolist())) < 2:
        raise ValueError(f"a power law needs measurements at two different costs, not at {sorted(set(n.tolist()))}")
    if not (np.all(n > 0) and np.all(d > 0) and np.all(e > 0)):
        raise ValueError(f"costs {n}, distances {d} and errors {e} must be positive: leave out what has arrived")
    weights = (d / e) ** 2
    x, y = np.log(n), np.log(d)
    centre, level = np.average(x, weights=weights), np.average(y, weights=weights)
    spread = np.sum(weights * (x - centre) ** 2)
    slope = np.sum(weights * (x - centre) * (y - level)) / spread
    numbers = (centre, level, weights.sum() ** -0.5, -slope, spread**-0.5)
    return PowerLaw(*(float(number) for number in numbers))


def standard_error(low: float, high: float) -> float:
    """Of a value with this 95 % interval."""
    return (high - low) / (2 * Z)


def _solve(centre: float, levels: np.ndarray, exponents: np.ndarray, distance: float) -> np.ndarray:
    helps = exponents > 0
    logs = centre + (levels - math.log(distance)) / np.where(helps, exponents, 1.0)
    return np.exp(np.where(helps & (logs < 700), logs, np.inf))
