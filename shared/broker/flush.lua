-- Forgets every message of the queues but those in somebody's hands, which settle into nothing. ARGV: queues.

for _, queue in ipairs(ARGV) do
    for _, group in ipairs(redis.call("LRANGE", key("queue", queue, "turns"), 0, -1)) do
        redis.call("DEL", key("queue", queue, "group", group))
    end
    redis.call("DEL", key("queue", queue), key("queue", queue, "turns"), key("queue", queue, "delayed"))
end
