"""Numbers as text for readers. Shares are rounded down, so that nothing claims more than was measured."""

from __future__ import annotations

import math

MISSING = "–"


def percent(value: float | None, digits: int = 1) -> str:
    """An accuracy in percent. 98.33 -> ``98.3 %``."""
    return MISSING if value is None else f"{value:.{digits}f} %"


def network(build: object) -> str:
    """The name of a network, without the folders of the file it is defined in. ``/home/me/net.py:Net`` -> ``net.py:Net``."""
    return str(build).rpartition("/")[2] if build else MISSING


def share(fraction: float) -> str:
    """A share, 0..1, rounded down: ``100 %`` only for 1."""
    if fraction >= 1:
        return "100 %"
    return f"{math.floor(fraction * 1e4) / 100:.2f} %"


def times(ratio: float, more: str, less: str) -> str:
    """A ratio in words: 4.1 -> ``4.1x smaller``, 0.8 -> ``1.2x larger``, about 1 -> neither."""
    if 0.995 <= ratio <= 1.005:
        return f"neither {more} nor {less}"
    word, factor = (more, ratio) if ratio > 1 else (less, 1 / ratio)
    return f"{factor:.1f}x {word}" if factor >= 1.1 else f"{factor:.2f}x {word}"


def size(count: float | None) -> str:
    """Bytes. 94399 -> ``94.4 kB``."""
    if count is None:
        return MISSING
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count:.0f} bytes"


def duration(seconds: float | None) -> str:
    """Seconds. 3700 -> ``1 h 1 min``."""
    if seconds is None:
        return MISSING
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def milliseconds(value: float | None) -> str:
    """0.03547 -> ``0.0355 ms``, 1234.5 -> ``1,234 ms``."""
    return MISSING if value is None else f"{three_digits(value)} ms"


def three_digits(value: float | None) -> str:
    """Three significant digits, and whole numbers from 100 on. 0.03547 -> ``0.0355``, 1234.5 -> ``1,234``."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def number(value: float) -> str:
    """Four significant digits at most. 0.00022089 -> ``0.0002209``."""
    return f"{value:.4g}"


def probability(p: float | None) -> str:
    """A p value. 0.0312 -> ``0.031``, 1e-7 -> ``< 0.0001``."""
    return MISSING if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def counted(count: int, word: str) -> str:
    """1, ``epoch`` -> ``1 epoch``; 2 -> ``2 epochs``."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
