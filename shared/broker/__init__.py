"""A Dramatiq broker on Redis: pushes messages to idle workers, serves groups round robin, delivers at least once.

`redis_broker.Broker` is the broker, `session.WorkerSession` a worker's session with Redis, `fairness.Fairness` the
capacity each group may use, `retries.Retries` the retry policy. `layout.lua` describes the keys and the moves of a
message between them, the other scripts the rules. The package knows nothing of the messages' contents.
"""
