"""exp by single-precision additions and multiplications only, so that every machine gives the same bits.

exp of the C library and of numpy differs between machines. Sampling weights and the integer engine
(engine/backends/arithmetic.py) both use this series; csrc has the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH = np.float32(0.693359375)  # 9 bits: its product with a whole number is exact
_LN2_LOW = np.float32(-2.12194440e-4)
# Minimax polynomial of exp on [-ln 2 / 2, ln 2 / 2] after 1 + r, highest power first (Cephes expf).
_POLYNOMIAL = tuple(
    map(np.float32, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5))
)


def split_exp(x: Floats) -> tuple[Floats, Floats]:
    """(m, n) with exp(x) = m * 2**n: n whole, m in [0.7, 1.42); x (...) float32 is overwritten.

    It works in place, because a new array of the vocabulary's size costs more than an addition.
    """
    n = x * _LOG2_E
    np.rint(n, out=n)
    r = x
    scratch = n * _LN2_HIGH
    r -= scratch
    np.multiply(n, _LN2_LOW, out=scratch)
    r -= scratch
    series = r * _POLYNOMIAL[0]
    for coefficient in _POLYNOMIAL[1:-1]:
        series += coefficient
        series *= r
    series += _POLYNOMIAL[-1]
    np.multiply(r, r, out=scratch)
    series *= scratch
    series += r
    series += np.float32(1)
    return series, n
