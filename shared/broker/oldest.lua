-- ARGV: queues. Returns of each: how long the message has waited that has waited longest, in ms; 0 if none waits.
-- Of a group the next message is looked at, of a queue so many groups. When a message was due is in its body, which is
-- Dramatiq's JSON: in a text of it the quotes would be escaped.

local GROUPS = 200
local DUE = '"message_timestamp":%s*(%d+)'

local function due_at(queue, group)
    local message_key = redis.call("LINDEX", key("queue", queue, "group", group), 0)
    local body = message_key and redis.call("HGET", key("queue", queue), message_key)
    local due = body and tonumber(string.match(body, DUE)) or 0
    -- Nothing told when: by its clock, or of an earlier release.
    return due > 0 and due or now
end

local ages = {}
for _, queue in ipairs(ARGV) do
    local oldest = now
    for number, group in ipairs(waiting_groups(queue)) do
        if number > GROUPS then break end
        oldest = math.min(oldest, due_at(queue, group))
    end
    table.insert(ages, now - oldest)
end
return ages
