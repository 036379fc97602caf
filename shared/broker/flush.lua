-- Deletes every message of the queues. An acknowledgement of a message in flight then finds nothing to delete.
-- ARGV: queues.

for _, queue in ipairs(ARGV) do
    for _, group in ipairs(waiting_groups(queue)) do
        redis.call("DEL", key("queue", queue, "group", group))
    end
    for _, message_key in ipairs(redis.call("HKEYS", key("queue", queue))) do delete(queue, message_key) end
    for _, part in ipairs({"rotation", "aside", "slow", "delayed"}) do
        redis.call("DEL", key("queue", queue, part))
    end
end
