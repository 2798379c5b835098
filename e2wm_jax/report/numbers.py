"""Numbers as people write them."""

import math

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def finite(value: float | None) -> float | None:
    """``value`` as a number that can be drawn, or None: beyond 1e250 counts as infinite, below 1e-250 as zero."""
    if value is None or not abs(value) <= 1e250:
        return None
    return float(value) if abs(value) >= 1e-250 else 0.0


def number(value: float, digits: int = 4) -> str:
    """``value`` to ``digits`` significant digits as people write it: 1,234, 0.05, or a power of ten where needed."""
    if not math.isfinite(value):
        return str(float(value))
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    exponent = int(power)
    if value == 0 or -4 <= exponent < 6:
        return _plain(f"{value:,.{max(digits - 1 - exponent, 0)}f}")
    return f"{_plain(mantissa)}\u00d710{str(exponent).translate(_SUPERSCRIPT)}"


def fixed(value: float, largest: float, digits: int) -> str:
    """``value`` to as many decimals as give ``largest`` its ``digits`` significant ones, so that columns line up."""
    if not 1e-4 <= largest < 1e6:
        return number(value, digits)
    return f"{value:z,.{max(digits - 1 - math.floor(math.log10(largest)), 0)}f}".replace("-", "\u2212")


def _plain(text: str) -> str:
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "\u2212")
