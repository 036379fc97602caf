-- Ends a session: requeues what it still has in flight and wakes the thread that listens, which then ends.
-- ARGV: session, its queues.

for at = 2, #ARGV do
    redis.call("ZREM", key("queue", ARGV[at], "idle"), ARGV[1])
    -- The workers that are left may be of v0.1.0-rc1, which looks at the rotation only.
    put_all_back(ARGV[at])
end
expire_session(ARGV[1])
redis.call("PUBLISH", key("wake", ARGV[1]), "")
