-- Deletes every message of the queues. An acknowledgement of a message in flight then finds nothing to delete.
-- ARGV: queues.

for _, queue in ipairs(ARGV) do
    for _, group in ipairs(waiting_groups(queue)) do
        redis.call("DEL", key("queue", queue, "group", group))
    end
    redis.call("DEL", key("queue", queue))
    for _, part in ipairs({"rotation", "delayed"}) do
        redis.call("DEL", key("queue", queue, part))
    end
end
