"""The checks of `arictl doctor`. Each module returns findings, and opens what it needs for a few seconds at most."""
