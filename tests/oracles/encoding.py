"""What a raw value is encoded to, one value at a time in plain Python integers and floats.

A key is None where the value is missing. Rows: 0 missing, 1 unknown, then the vocabulary or the buckets.
"""

import math
import string
from collections import Counter
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

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


# Columns of several raw columns, of times, of words


def is_missing(value):
    """Whether a raw value is missing; a list is if it holds nothing that is not."""
    if isinstance(value, list):
        return all(is_missing(v) for v in value)
    if isinstance(value, float):
        return not math.isfinite(value)
    return value is None or value == "" or (isinstance(value, int) and signed(int(value) & MASK) == -(2**63))


def cross_row(values, are_texts, buckets):
    """The row of several raw values together; a missing one is hashed as the empty text or the smallest integer."""
    total = 0
    for value, is_text in zip(values, are_texts, strict=True):
        k = key(value)
        if is_text:
            hash_ = text_hash(k or "")
        else:
            hash_ = splitmix64(-(2**63) if k is None else -(2**63) + 1 if k is FRACTION else k)
        total = splitmix64(total ^ hash_)
    return MISSING if all(key(v) is None for v in values) else FIRST + bucket(total, buckets)


def date_row(value, part, unit, zone):
    """The row of a time, by the datetime module; 1900 to 2099 only."""
    if value is None or value == -(2**63):
        return MISSING
    second = value * 86_400 if unit == "day" else value // {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    try:
        local = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second)
    except OverflowError:
        return UNKNOWN
    if not 1900 <= local.year < 2100:
        return UNKNOWN
    local = local.astimezone(ZoneInfo(zone))
    parts = {
        "hour": local.hour,
        "weekday": local.weekday(),
        "day": local.day - 1,
        "month": local.month - 1,
        "hour_of_week": 24 * local.weekday() + local.hour,
    }
    return FIRST + parts[part]


def words(text, *, lower=True):
    """ASCII letters and digits, and everything beyond ASCII, are words; the rest separates them."""
    found = [""]
    for character in text or "":
        if ord(character) >= 128:
            found[-1] += character
        elif character in string.ascii_letters + string.digits:
            found[-1] += character.lower() if lower else character
        else:
            found.append("")
    return [word for word in found if word]


def text_bag(text, buckets, *, ngrams=1, max_length=None, lower=True):
    """The rows of all words, then of all pairs, and so on; never empty."""
    kept = words(text, lower=lower)[:max_length]
    grams = [" ".join(kept[i : i + n]) for n in range(1, ngrams + 1) for i in range(len(kept) - n + 1)]
    return [FIRST + bucket(text_hash(gram), buckets) for gram in grams] or [MISSING]


def idf(bags):
    """By row, how much an element of a bag weighs."""
    counted = Counter(r for b in bags for r in set(b))
    return lambda r: 1.0 if r == MISSING else math.log((1 + len(bags)) / (1 + counted[r])) + 1


def weighted_bag(values, weights, rows, max_length=None):
    """Rows and weights of a list: missing weights are 0, and so are negative ones."""
    pairs = [(row(v, rows), max(number(w) or 0.0, 0.0)) for v, w in zip(values or [], weights or [], strict=True)]
    kept = [pair for pair in pairs if pair[0] != MISSING]
    kept = (kept if max_length is None else kept[-max_length:]) or [(MISSING, 1.0)]
    return [r for r, _ in kept], [w for _, w in kept]
