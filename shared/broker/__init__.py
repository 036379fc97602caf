"""A Dramatiq broker on Redis that wakes whoever waits, takes turns between groups, and loses nothing it was given.

`brokers.Broker` is the broker, `members.Member` a worker's place in it, `retries.Retries` when to try again. The keys
and the moves between them are in `layout.lua`, the rules in the other scripts. Knows nothing of what it carries.
"""
