-- Returns the messages a session has in flight without knowing of them: the reply that carried them was lost.
-- ARGV: session, then <queue>/<message key> of each message it knows. Returns of each other: queue, message key, body.

local known = {}
for at = 2, #ARGV do known[ARGV[at]] = true end
local found = {}
for _, in_flight in ipairs(redis.call("SMEMBERS", key("in-flight", ARGV[1]))) do
    if not known[in_flight] then
        local queue, message_key = split(in_flight)
        local body = redis.call("HGET", key("queue", queue), message_key)
        if body then
            for _, part in ipairs({queue, message_key, body}) do table.insert(found, part) end
        else
            release(ARGV[1], queue, message_key)
        end
    end
end
return found
