"""Why a format's files are not timed on this machine, and what to do about it."""

from __future__ import annotations

from edgeopt.api.formats import exporter_for, inspector_for


def why_untimed_on_device(format_: str) -> str:
    """Return why files are not timed on this machine, which is their device, or an empty string."""
    reason = inspector_for(format_).untimed()
    return "" if reason is None else with_remedy(reason, format_, "here")


def with_remedy(reason: str, format_: str, where: str) -> str:
    """Return a reason with how the format's files are measured on their device instead.

    Args:
        reason: Why they are not measured.
        format_: The format.
        where: `here` or `there`: where the device is for whoever reads it.
    """
    remedy = exporter_for(format_).attaching(where)
    return f"{reason}; {remedy}" if remedy else reason
