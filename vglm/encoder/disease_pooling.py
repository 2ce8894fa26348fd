"""What the findings of a patient say together about a candidate: a row of fixed length, whatever their number.

Each finding's match is first turned into `BASIS` (a few products and hinges, with which a linear score per finding is
already a good one) and then summed: a Deep Set (Zaheer et al. 2017) whose inner function is fixed, so the order of
findings does not matter."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vglm.encoder.disease_candidates import Candidates, DiseaseIndex, Screening
from vglm.encoder.disease_features import MATCH, TWIN, WHOLE, around, match, of_twins, share, whole

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

BASIS = (
    *("best log lift", "shared content", "share of content", "Lin", "frequency if exact", "exact"),
    *("frequency", "below", "log frequency where shared", "log lift where shared"),
    *("log number where shared", "shared ancestors", "log lift around", "best log lift around"),
    *("exact x content", "share x shared", "log lift above 2", "log lift above 4", "share above half"),
    *("content not shared", "share above three quarters", "log lift below 0", "below x content"),
    *("around above own", "own above around", "Lin squared", "content where best"),
)
EXTREMES = (
    "least log lift",
    "least share",
    "largest log lift",
    "largest exact content",
    "spread of log lift",
)
POOLED = (
    *(f"mean {name}" for name in BASIS),
    *(f"sum {name}" for name in BASIS),
    *EXTREMES,
    *WHOLE,
    *(f"mean {name}" for name in TWIN),
    *(f"sum {name}" for name in TWIN),
    "twins",
)


def pooled(index: DiseaseIndex, screening: Screening, candidates: Candidates, findings: Ints) -> Floats:
    """Everything about K candidates, float32[K, len(POOLED)]; `findings`, at least one, as in `screen`.

    Excluded findings are not among it: see `speaks_against`.
    """
    shared = share(index.ranking, candidates, findings)
    matches = match(index.ranking, candidates, shared, findings)
    terms = basis(matches, around(screening, candidates))
    total = terms.sum(axis=0)
    lift, part, exact = (
        terms[:, :, BASIS.index(name)] for name in ("best log lift", "share of content", "exact x content")
    )
    extremes = (lift.min(axis=0), part.min(axis=0), lift.max(axis=0), exact.max(axis=0), lift.std(axis=0))
    twins = of_twins(screening, candidates, matches[:, :, 0]).sum(axis=0)
    parts = (
        total / len(findings),
        total / np.sqrt(np.float32(len(findings))),
        np.stack(extremes, axis=1),
        whole(index.ranking, candidates, matches, shared, screening),
        twins / len(findings),
        twins / np.sqrt(np.float32(len(findings))),
        (candidates.twins >= 0).any(axis=1, keepdims=True),
    )
    return np.concatenate(parts, axis=1, dtype=np.float32)


def basis(matches: Floats, near: Floats) -> Floats:
    """The terms of the sum over findings, float32[n, K, len(BASIS)], from `match` and `around`."""
    m = dict(zip(MATCH, np.moveaxis(matches, 2, 0), strict=True))
    mean, best = near[:, :, 0], near[:, :, 1]
    lift, share, content, lin = (m[name] for name in ("best log lift", "share of content", "content", "Lin"))
    columns = (
        *(lift, m["shared content"], share, lin, m["frequency if exact"], m["exact"]),
        *(m["frequency"], m["below"], m["log frequency where shared"], m["log lift where shared"]),
        *(m["log number where shared"], m["shared ancestors"], mean, best),
        *(
            m["exact"] * content,
            share * m["shared content"],
            np.maximum(lift - 2, 0),
            np.maximum(lift - 4, 0),
        ),
        *(np.maximum(share - 0.5, 0), (1 - share) * content, share > 0.75, np.minimum(lift, 0)),
        *(m["below"] * content, np.maximum(mean - lift, 0), np.maximum(lift - mean, 0), lin * lin),
        m["content where best"],
    )
    return np.stack(columns, axis=2, dtype=np.float32)
