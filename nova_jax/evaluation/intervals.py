"""Confidence intervals for rates, for means, and for root mean squares.

Wilson's score interval (E. B. Wilson 1927, "Probable inference, the law of succession, and statistical inference"): the
rates whose z-test does not reject the observed k of n,

    (k + z^2 / 2 -+ z sqrt(k (n - k) / n + z^2 / 4)) / (n + z^2),    z = the (1 + confidence) / 2 normal quantile.

It stays inside [0, 1] and keeps its coverage at rates near 0 and 1, where k/n -+ z s/sqrt(n) fails.
"""

import math
import statistics
from collections.abc import Sequence

import numpy as np
from scipy import special

Estimate = dict[str, float]  # value, low, high, n


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson interval of a rate; (0, 1) when nothing was tried.

    Raises:
        ValueError: `successes` is not in 0..n, or `confidence` not strictly between 0 and 1.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes is {successes} of {n}; give 0 to n.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; give a number strictly between 0 and 1, such as 0.95.")
    if n == 0:
        return 0.0, 1.0
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    middle = successes + z * z / 2
    spread = z * math.sqrt(successes * (n - successes) / n + z * z / 4)
    return max((middle - spread) / (n + z * z), 0.0), min((middle + spread) / (n + z * z), 1.0)


def difference(first: tuple[float, float, float], second: tuple[float, float, float]) -> tuple[float, float]:
    """The interval of `second - first` from two rates with their intervals, (rate, low, high) each.

    Newcombe's hybrid of Wilson intervals (1998, Statistics in Medicine 17, method 10).
    """
    (p, p_low, p_high), (q, q_low, q_high) = first, second
    below = ((q - q_low) ** 2 + (p_high - p) ** 2) ** 0.5
    above = ((q_high - q) ** 2 + (p - p_low) ** 2) ** 0.5
    return q - p - below, q - p + above


def summarize(values: Sequence[bool | float | None]) -> Estimate | None:
    """The rate of booleans with its Wilson interval, or the mean of numbers with Student's; None is left out.

    Returns:
        {value, low, high, n}; None where nothing is left.
    """
    given = [value for value in values if value is not None]
    if not given:
        return None
    if isinstance(given[0], bool):
        right, n = sum(given), len(given)
        low, high = wilson(int(right), n)
        return {"value": right / n, "low": low, "high": high, "n": n}
    return mean(given)


def mean(values: Sequence[float] | np.ndarray) -> Estimate:
    """A mean with its 95 % interval by Student's t, {value, low, high, n}; one value has no interval."""
    values = np.asarray(values, np.float64)
    n, middle = len(values), float(values.mean())
    wide = float(special.stdtrit(n - 1, 0.975) * values.std(ddof=1) / math.sqrt(n)) if n > 1 else 0.0
    return {"value": middle, "low": middle - wide, "high": middle + wide, "n": n}


def root_mean(squares: Sequence[float] | np.ndarray) -> Estimate:
    """The root of a mean of squares with its 95 % interval, {value, low, high, n}, from the spread between them.

    Student's t over the squares, then the root; the lower end is never below 0, and one square has no interval.
    """
    of_squares = mean(squares)
    roots = {name: math.sqrt(max(of_squares[name], 0.0)) for name in ("value", "low", "high")}
    return {**roots, "n": of_squares["n"]}
