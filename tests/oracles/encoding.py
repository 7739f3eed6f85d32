"""What a raw value is encoded to, one value at a time in plain Python integers and floats.

A key is None where the value is missing. Rows: 0 missing, 1 unknown, then the vocabulary or the buckets.
"""

import math
from collections import Counter

MASK = 2**64 - 1
MISSING, UNKNOWN, FIRST = 0, 1, 2
FRACTION = "no key"  # stands for every float that is no whole number


def signed(x):
    """The same 64 bits as a signed integer."""
    return x - 2**64 if x >= 2**63 else x


def splitmix64(value):
    """Steele, Lea and Flood (2014), on the bits of a signed integer."""
    z = (value + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return signed(z ^ (z >> 31))


def fnv1a(content):
    """Fowler, Noll and Vo over bytes."""
    h = 0xCBF29CE484222325
    for byte in content:
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def text_hash(text):
    return splitmix64(fnv1a(text.encode()))


def bucket(hash_, buckets):
    return (hash_ & (2**63 - 1)) % buckets


def key(value):
    """The key of a raw value of any type, or None."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() and abs(value) < 2**53 else FRACTION
    value = signed(int(value) & MASK)
    return None if value == -(2**63) else value


def vocabulary(values, min_count):
    """Rows of known keys: the most frequent first, then in their own order."""
    counted = Counter(k for k in map(key, values) if k is not None)
    frequent = [k for k, count in counted.items() if count >= min_count]
    return {k: FIRST + i for i, k in enumerate(sorted(frequent, key=lambda k: (-counted[k], k)))}


def row(value, rows):
    """The row of a raw value, by a vocabulary (a dict) or a number of buckets."""
    k = key(value)
    if k is None:
        return MISSING
    if isinstance(rows, dict):
        return rows.get(k, UNKNOWN)
    hash_ = (
        text_hash(k) if isinstance(k, str) and k is not FRACTION else splitmix64(-(2**63) + 1 if k is FRACTION else k)
    )
    return FIRST + bucket(hash_, rows)


def bag(values, rows, max_length=None):
    """The rows of a list: without missing elements, its last ones, and never empty."""
    kept = [r for r in (row(v, rows) for v in values or []) if r != MISSING]
    return (kept if max_length is None else kept[-max_length:]) or [MISSING]


def number(value):
    """A raw value as a float, or None."""
    if value is None:
        return None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    k = key(value)
    return None if k is None else float(k)


def scaled(value, *, clip=None, log=False, shift=0.0, scale=1.0):
    """Clipped, log-compressed, scaled; 0 where missing. In float64."""
    x = number(value)
    if x is None:
        return 0.0
    if clip is not None:
        x = min(max(x, clip[0]), clip[1])
    if log:
        x = math.copysign(math.log1p(abs(x)), x)
    return (x - shift) / scale


def bucket_row(value, cuts):
    """One row per bucket; a value equal to a cut lies above it."""
    x = number(value)
    return MISSING if x is None else FIRST + sum(cut <= x for cut in cuts)
