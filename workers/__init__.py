"""The Dramatiq workers: one queue per step of a call."""
