-- Compares the messages a session has in flight with those it knows.
-- ARGV: session, then <queue>/<message key> of each message it knows.
-- Returns: those it knows that are not in flight in it: Redis was emptied, or the session had expired;
--          then of each that it does not know, as the push or the reply that carried it was lost: queue, message key, body.

local forgotten = {}
for at = 2, #ARGV do forgotten[ARGV[at]] = true end
local lost = {}
for _, in_flight in ipairs(redis.call("SMEMBERS", key("in-flight", ARGV[1]))) do
    if forgotten[in_flight] then
        forgotten[in_flight] = nil
    else
        local queue, message_key = split(in_flight)
        local body = redis.call("HGET", key("queue", queue), message_key)
        if body then
            for _, part in ipairs({queue, message_key, body}) do table.insert(lost, part) end
        else
            release(ARGV[1], queue, message_key)
        end
    end
end
local names = {}
for name in pairs(forgotten) do table.insert(names, name) end
return {names, lost}
