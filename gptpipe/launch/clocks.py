"""Clocks of machines that work together: leases and S3 signatures live by them."""

from __future__ import annotations

import socket

from gptpipe.errors import UserError

_MOST_SKEW = 30.0  # seconds


def check_clock(skew: float, name: str = "") -> None:
    """Refuse a clock that is too far from the others'.

    Args:
        skew: seconds that it is ahead of them.
        name: of the machine that has it; by default this one.

    Raises:
        UserError: it is more than half a minute off.
    """
    if abs(skew) > _MOST_SKEW:
        raise UserError(
            f"the clock of {name or 'this machine'} is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}",
            where=name or socket.gethostname(),
            hint="set it by NTP (chrony, systemd-timesyncd)",
        )
