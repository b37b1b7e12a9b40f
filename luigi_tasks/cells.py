"""Cells of CSV files that people open in a spreadsheet."""

from __future__ import annotations

# A spreadsheet interprets a cell that starts with one of these as a formula, which may start programs or
# contact servers; the wide characters are equivalent in East Asian locales. Source: OWASP, CSV Injection.
FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001 - meant


def guard_formula(text: str) -> str:
    """Return a cell's text in a form that no spreadsheet interprets as a formula."""
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text
