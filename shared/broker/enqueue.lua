-- Stores messages that are not there yet: to enqueue one again, because nobody knows whether it arrived, is harmless.
-- ARGV: queue, reference, body, delay in ms; the same of the next; ...

for at = 1, #ARGV, 4 do
    local queue, reference, body, delay_ms = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
    if redis.call("HSETNX", key("queue", queue), reference, body) == 1 then
        if delay_ms > 0 then
            delay(queue, reference, delay_ms)
        else
            put(queue, reference, false)
            wake(queue)
        end
    end
end
