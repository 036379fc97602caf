-- Ends a session: requeues what it still has in flight and wakes its wake-up thread, which then ends.
-- ARGV: session, its queues.

for at = 2, #ARGV do
    redis.call("ZREM", key("queue", ARGV[at], "idle"), ARGV[1])
end
expire_session(ARGV[1])
redis.call("PUBLISH", key("wake", ARGV[1]), "")
