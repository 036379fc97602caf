"""Tries the promise as a whole: real processes under faults and load, and a judge that knows none of them."""
