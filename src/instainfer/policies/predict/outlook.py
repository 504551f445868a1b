"""What a predictor expects of one function from now on, as a picture of it needs it. Asks, and changes nothing."""

from __future__ import annotations

import msgspec

from instainfer.policies.base import Periodic
from instainfer.policies.predict.forecast import Forecast

POINTS = 60
SHORTEST_S, LONGEST_S = 60.0, 86400.0
_SHARES = (0.1, 0.5, 0.9)
_STEPS = 120  # of the time to the next arrival: 10% apart, from a second to a day


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    rate: float  # arrivals per second, now
    last_s: float | None  # since the last arrival
    next_s: tuple[float | None, float | None, float | None]  # until the next one is there with 10, 50 and 90%
    period_s: float | None
    hazard: tuple[tuple[float, float], ...]  # (seconds from now, rate then if nothing arrives before)


def outlook(forecast: Forecast, function: str, now: float) -> Outlook:
    last = forecast.last(function)
    reached: list[float | None] = [None] * len(_SHARES)
    for step in range(_STEPS + 1):
        within = LONGEST_S ** (step / _STEPS)
        probability = forecast.probability(function, now, within)
        for place, share in enumerate(_SHARES):
            if reached[place] is None and probability >= share:
                reached[place] = within
        if reached[-1] is not None:
            break
    far = min(4.0 * (reached[1] or LONGEST_S), 1.5 * (reached[2] or LONGEST_S))
    far = min(max(far, SHORTEST_S), LONGEST_S)
    times = [far * place / (POINTS - 1) for place in range(POINTS)]
    base = forecast.base
    return Outlook(
        rate=forecast.rate(function, now),
        last_s=None if last is None else now - last,
        next_s=(reached[0], reached[1], reached[2]),
        period_s=base.period(function) if isinstance(base, Periodic) else None,
        hazard=tuple((at, forecast.rate(function, now + at)) for at in times),
    )
