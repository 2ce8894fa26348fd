"""When requests arrive in an open loop: whatever the server does, as real users do."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from vglm.errors import ConfigError


def gamma_arrivals(
    count: int, rate: float, burstiness: float = 1.0, seed: int = 0
) -> npt.NDArray[np.float64]:
    """Seconds at which `count` requests arrive, `rate` a second on average; the first at the first interval's end.

    Intervals follow a gamma distribution with shape `burstiness`, so its coefficient of variation is
    1 / sqrt(burstiness): 1 is a Poisson process, less is more bursty, more is more even. An infinite rate is everything
    at once. Raises ConfigError.
    """
    if not rate > 0:
        raise ConfigError(f"--request-rate {rate:g}: requests per second must be positive")
    if not 0 < burstiness < math.inf:
        raise ConfigError(f"--burstiness {burstiness:g}: it must be positive; 1 is a Poisson process")
    if math.isinf(rate):
        return np.zeros(count)
    rng = np.random.default_rng(seed)
    arrivals: npt.NDArray[np.float64] = np.cumsum(rng.gamma(burstiness, 1 / (rate * burstiness), count))
    return arrivals
