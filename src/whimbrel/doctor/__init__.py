"""`whimbrel doctor`: examine a home, explain what is wrong with it, and mend what can be mended without risk.

It opens as little as it can, changes nothing unless it is asked to, and can run beside an owner. Each check is a small
function that yields findings; one that cannot be done is a finding itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from whimbrel.config import Settings
from whimbrel.doctor import places, record, views
from whimbrel.doctor.findings import Finding, Level, checked
from whimbrel.doctor.mending import Mender
from whimbrel.errors import WhimbrelError
from whimbrel.home import Home

__all__ = ["Finding", "Level", "diagnose", "is_healthy"]


def diagnose(settings: Settings, *, fix: bool = False) -> list[Finding]:
    """Everything that there is to say about a home, in the order in which to act.

    With `fix`, what is mendable is mended, and the home examined again: a finding counts as mended only if it has gone.
    """
    mender = Mender(settings)
    try:
        found = _examine(settings, mender)
        wounds = [finding for finding in found if finding.mend is not None]
        if not fix or not wounds:
            return found
        tried = [_mended(finding) for finding in wounds]
        mender.settle()
        mender.close()
        after = _examine(settings, mender)
    finally:
        mender.close()
    still = {(finding.check, finding.what) for finding in after}
    gone = [replace(one, mended=True) for one in tried if one.mended and (one.check, one.what) not in still]
    failed = {(one.check, one.what): one for one in tried if not one.mended}
    return [*gone, *(failed.get((finding.check, finding.what), finding) for finding in after)]


def is_healthy(findings: Sequence[Finding]) -> bool:
    """True when no problem is left. Warnings and notes are for reading."""
    return not any(finding.level is Level.PROBLEM and not finding.mended for finding in findings)


def _examine(settings: Settings, mender: Mender) -> list[Finding]:
    home = Home(settings.home)
    found = [*checked(places.there, home)]
    if found:
        return found
    for check in places.CHECKS:
        found += checked(check, home)
    opened = record.Opened(settings, home)
    try:
        unusable = [*checked(record.usable, opened)]
        found += unusable
        if not unusable:
            for record_check in record.CHECKS:
                found += checked(record_check, opened, mender)
            for view_check in views.CHECKS:
                found += checked(view_check, opened, mender)
    finally:
        opened.close()
    order = list(Level)
    return sorted(found, key=lambda finding: order.index(finding.level))


def _mended(finding: Finding) -> Finding:
    assert finding.mend is not None
    try:
        finding.mend()
    except (WhimbrelError, OSError) as error:
        return replace(finding, why=f"{finding.why} It could not be mended: {error}".strip())
    return replace(finding, mended=True)
