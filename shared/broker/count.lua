-- ARGV: queues. Returns of each: the number of messages waiting, delayed and in flight.

local counts = {}
for _, queue in ipairs(ARGV) do
    local waiting = 0
    for _, group in ipairs(waiting_groups(queue)) do
        waiting = waiting + redis.call("LLEN", key("queue", queue, "group", group))
    end
    local delayed = redis.call("ZCARD", key("queue", queue, "delayed"))
    local all = redis.call("HLEN", key("queue", queue))
    for _, number in ipairs({waiting, delayed, all - waiting - delayed}) do table.insert(counts, number) end
end
return counts
