"""Random numbers that are a function of a seed and a position, the same on every platform."""

from __future__ import annotations

MASK = (1 << 64) - 1
AGAIN = 0x6A09E667F3BCC909  # sets the streams of one seed apart from those of its neighbours
STEP = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: keeps consecutive inputs far apart


def uniform(seed: int, position: int, again: int = 0) -> float:
    """A number in [0, 1) with 53 random bits, for the token at `position` of a sequence drawn with `seed`.

    SplitMix64's stream `seed`, entered at `position`: no state, so a draw repeats whatever was drawn before
    or beside it. Any integers do; they count modulo 2**64. Where a position draws `again`, it is for that
    many times, each with a stream of its own.
    """
    stream = _mixed(((seed ^ again * AGAIN) + STEP) & MASK)
    return (_mixed((stream + (position + 1) * STEP) & MASK) >> 11) * 2.0**-53


def _mixed(x: int) -> int:
    """SplitMix64's finaliser: every bit of the 64 depends on every bit of x."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)
