"""No pre-loading: functions load when they are called."""

from __future__ import annotations

from instainfer.policies.base import Plan, Predictor, Snapshot


class NoPreload:
    """What keep-alive alone gives."""

    ends_co_residents = False
    plans = False

    def plan(self, snapshot: Snapshot, forecast: Predictor, now: float) -> Plan:
        return Plan()
