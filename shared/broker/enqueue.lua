-- Stores messages. A message whose key is already there is skipped: a producer that got no reply may safely repeat.
-- ARGV: of each message: queue, message key, body, delay in ms.

for at = 1, #ARGV, 4 do
    local queue, message_key, body, delay_ms = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
    if redis.call("HSETNX", key("queue", queue), message_key, body) == 1 then
        if delay_ms > 0 then
            delay(queue, message_key, delay_ms)
        else
            add_waiting(queue, message_key, false)
            wake(queue)
        end
    end
end
