-- What a member holds and does not know of: the answer that brought it was lost.
-- ARGV: member, then <queue>/<reference> of each message it knows of. Gives of each other one: queue, reference, body.

local known = {}
for at = 2, #ARGV do known[ARGV[at]] = true end
local found = {}
for _, held in ipairs(redis.call("SMEMBERS", key("held", ARGV[1]))) do
    if not known[held] then
        local queue, reference = split(held)
        local body = redis.call("HGET", key("queue", queue), reference)
        if body then
            for _, part in ipairs({queue, reference, body}) do table.insert(found, part) end
        else
            release(ARGV[1], queue, reference)
        end
    end
end
return found
