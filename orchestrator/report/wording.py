"""How names and numbers read in a report, in the terminal and on the page."""


def plain(name: str) -> str:
    """A name as a person reads it: fidelity_kid -> fidelity kid."""
    return name.replace("_", " ")


def number(value: object) -> str:
    """A value in a table: three digits of a measured one, `-` for none."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def signed(value: float) -> str:
    """A difference, with its sign."""
    return f"{value:+.3g}" if value else "0"


def spread(mean: float | None, deviation: float | None) -> str:
    """`0.700 ± 0.141`; the mean alone where there is no spread."""
    if mean is None:
        return "-"
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"
