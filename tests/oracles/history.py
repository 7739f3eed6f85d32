"""What came before each row, found by looking at every other row, one pair at a time.

Missing times and sessions are None.
"""


def weight(age, half_life):
    return 1.0 if half_life is None else 0.5 ** (age / half_life)


def before(i, key, time, counts, session=None):
    """The rows that row i sees."""
    if time[i] is None:
        return []
    return [
        j
        for j in range(len(key))
        if counts[j]
        and time[j] is not None
        and time[j] < time[i]
        and key[j] == key[i]
        and (session is None or session[i] is None or session[j] != session[i])
    ]


def causal(key, time, value, counts, session=None, half_life=None):
    """Number and sum for each row."""
    found = []
    for i in range(len(key)):
        past = [(weight(time[i] - time[j], half_life), value[j]) for j in before(i, key, time, counts, session)]
        found.append((sum(w for w, _ in past), sum(w * v for w, v in past)))
    return found


def ends(key, time, value, counts, half_life=None):
    """Number and sum for each key with a counted row, at the last time of any row."""
    last = max((t for t in time if t is not None), default=None)
    found = {}
    for k, t, v, counted in zip(key, time, value, counts, strict=True):
        if counted and t is not None:
            w = weight(last - t, half_life)
            n, total = found.get(k, (0.0, 0.0))
            found[k] = (n + w, total + w * v)
    return found


def column(key, time, trained, of=None, session=None, *, rate, prior=10.0, half_life=None):
    """The values of a history column before any scaling.

    Rows that are not trained on get what is known after the last one that is; an outcome of None is not known.
    """
    rows = [i for i in range(len(key)) if trained[i]]
    part = {"key": [key[i] for i in rows], "time": [time[i] for i in rows]}
    outcome = [1.0 if of is None else of[i] for i in rows]
    counts = [v is not None for v in outcome]
    value = [0.0 if v is None else v for v in outcome]
    sessions = None if session is None else [session[i] for i in rows]
    known = [v for v, c, t in zip(value, counts, part["time"], strict=True) if c and t is not None]
    mean = sum(known) / len(known) if known else 0.0

    def told(n, total):
        return (total + prior * mean) / (n + prior) if rate else total

    part |= {"value": value, "counts": counts, "half_life": half_life}
    seen = dict(zip(rows, causal(**part, session=sessions), strict=True))
    after = ends(**part)
    return [told(*(seen[i] if trained[i] else after.get(key[i], (0.0, 0.0)))) for i in range(len(key))]


def past_list(i, key, time, keep, longest):
    """The row numbers in the list of row i, oldest first."""
    past = sorted((time[j], j) for j in before(i, key, time, keep))
    return [j for _, j in past][-longest:]
