"""The index of the board: the newest snapshot and the registry in SQLite, for pages that filter and sort.

    index.sqlite     a row for each channel of each device, made anew with each snapshot
    history.sqlite   counts of the fleet over time

The board's process never has the rows in memory: `loading.py` writes them one after the other, for large
fleets in a short-lived child (`child.py`).
"""
