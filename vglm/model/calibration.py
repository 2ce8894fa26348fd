"""Which channels of the activations are large: what int8 weights are balanced with.

The error of y = W x with both sides in int8 grows with sum(x_k^2) * sum_k |W_k|^2 over the channels k. Dividing channel k of
x by s_k and multiplying column k of W by it, with s = sqrt(rms(x) / rms(W)), makes that product least (the idea is
SmoothQuant's, arXiv:2211.10438; the Hadamard transform that follows at run time flattens what outliers are left). The
divisions cost nothing at run time: they fold into norm weights and into the rows of up_proj.
"""

from __future__ import annotations

import numpy as np

from vglm.model.checkpoint import Checkpoint
from vglm.model.reference import Float32, Reference, causal_mask, rms_norm

MAX_TOKENS = 384
_FLOOR = 0.05  # a channel that is almost dead counts as this share of the median, so that no scale explodes
TEXT = """The harbour was quiet that morning, and the fishermen were mending their nets while the sun rose over the hills. \
A doctor walked along the quay with a letter in her hand. She had read it twice already: the hospital in the city wanted her \
opinion about a patient with a fever, a rash and a weak heart.
In 1969, two people walked on the Moon for the first time. The computer that guided them had about 4 kilobytes of memory and \
ran at 2 MHz; today a watch has a million times more.
def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)
Question: What is the capital of France?
Answer: The capital of France is Paris, a city on the river Seine with about 2.1 million inhabitants.
| name | unit | value |
| speed of light | m/s | 299,792,458 |
The committee shall publish its report within thirty days, unless both parties agree in writing to extend this period. Water \
boils at 100 degrees Celsius at sea level, but on a high mountain it boils sooner, because the air presses less on its \
surface. "I don't believe it," said the old man, "but perhaps you are right." Cells divide, proteins fold, and enzymes speed \
up reactions that would otherwise take years.
To bake bread you need flour, water, salt and yeast. Mix them, let the dough rest for two hours, then bake it at 220 degrees \
until the crust is brown.
"""

# What models that were trained for graphs read and write besides.
GRAPH_TEXT = """Graph:
Brittle bone syndrome (disease)
- has phenotype: Blue sclerae (frequency 41/52)
- has phenotype: Recurrent fractures (very frequent, 80-99 %)
- has phenotype: Hearing impairment
- has phenotype: Short stature (frequent, 30-79 %)
Patient: Recurrent fractures, Blue sclerae, Conductive hearing impairment (as Hearing impairment). Not explained: Fever.
Why may it be Brittle bone syndrome?
[Brittle bone syndrome] fits: [Recurrent fractures] is very frequent in it, [Blue sclerae] is seen in 41 of 52 patients, and \
the conductive hearing impairment matches [Hearing impairment]. It does not explain the fever.
Graph:
Lisbon (city): The capital of Portugal.
- lies on: Tagus
- twinned with: Madrid, Rio de Janeiro
guitar (noun): a stringed instrument with a long neck
- hypernym: stringed instrument
- part of: band
Complete the triple (Lisbon, capital of, ?) of the graph. Answer with the name that belongs in place of ?.
Portugal
"""


class Calibration(Reference):
    """One fp32 forward pass over TEXT, a layer at a time, keeping one layer's tensors in memory."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.config, checkpoint.tensor)
        reads_graphs = checkpoint.graph_card is not None and checkpoint.graph_card.spans
        tokenizer = checkpoint.tokenizer()
        ids = tokenizer.encode(TEXT)[:MAX_TOKENS]
        if reads_graphs:
            ids = tokenizer.encode(GRAPH_TEXT)[:MAX_TOKENS] + ids
        vocabulary = checkpoint.config.vocab_size
        self._ids = [token for token in ids if token < vocabulary] or [0]
        self._mask = causal_mask(len(self._ids), checkpoint.config.sliding_window)
        self._positions = np.arange(len(self._ids))
        self._x = self.embed(self._ids)
        self._rms: dict[str, Float32] = {}

    def run_layer(self, layer: int) -> dict[str, Float32]:
        """Root mean square per channel of the inputs of `q`, `gate` and `down`, float32 [channels] each."""
        self._rms = {}
        self._x = self._layer(layer, self._x, self._positions, self._mask)
        return self._rms

    def forget_layer(self, layer: int) -> None:
        """Drop the tensors of a layer that is done."""
        for name in [n for n in self._cache if n.startswith(f"layers.{layer}.")]:
            del self._cache[name]

    def output_rms(self) -> Float32:
        """Root mean square per channel of the final norm's output, after all layers."""
        return _channel_rms(rms_norm(self._x, self.weight("final_norm"), self.config.norm_eps))

    def _linear(self, layer: int, name: str, x: Float32) -> Float32:
        if name in ("q", "gate", "down"):
            self._rms[name] = _channel_rms(x)
        return super()._linear(layer, name, x)


def balance(activations: Float32, *weights: Float32) -> Float32:
    """The scales s [channels], geometric mean 1, of activations with this rms and the matrices [out, channels]
    that read them."""
    columns = np.sqrt(sum(np.einsum("ok,ok->k", w, w) for w in weights))
    log_scale = 0.5 * (np.log(_floored(activations)) - np.log(_floored(columns)))
    if not np.isfinite(log_scale).all():  # weights that overflow: one bad channel must not spoil the others
        return np.ones_like(activations)
    scale: Float32 = np.exp(log_scale - log_scale.mean()).astype(np.float32)
    return scale


def _floored(values: Float32) -> Float32:
    floored: Float32 = np.maximum(values, np.float32(max(float(np.median(values)) * _FLOOR, 1e-12)))
    return floored


def _channel_rms(x: Float32) -> Float32:
    rms: Float32 = np.sqrt(np.mean(np.square(x), axis=0)).astype(np.float32)
    return rms
