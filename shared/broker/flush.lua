-- Forgets every message of the queues but those in somebody's hands, which settle into nothing. ARGV: queues.

for _, queue in ipairs(ARGV) do
    for _, group in ipairs(groups_of(queue)) do
        redis.call("DEL", key("queue", queue, "group", group))
    end
    redis.call("DEL", key("queue", queue))
    for _, part in ipairs({"turns", "delayed"}) do
        redis.call("DEL", key("queue", queue, part))
    end
end
