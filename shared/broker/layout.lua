-- The keys, and the moves of a message between them. Stands before each of the scripts.
--
-- KEYS[1] is the namespace, with which every key begins; written as {name}, all lie in one slot of a cluster.
--
--   <ns>:queue:<queue>                hash     <group>/<id> -> body: each message of the queue, wherever it is
--   <ns>:queue:<queue>:group:<group>  list     <group>/<id> of a group's waiting messages, the next one first
--   <ns>:queue:<queue>:turns          list     the groups with waiting messages, whose turn it is first
--   <ns>:queue:<queue>:delayed        zset     <group>/<id> -> when it is due
--   <ns>:queue:<queue>:idle           zset     member -> since when it has waited for the queue's messages
--   <ns>:members                      zset     member -> its last heartbeat
--   <ns>:held:<member>                set      <queue>/<group>/<id> of each message in a member's hands
--   <ns>:watch                        hash     beat, spared_until, searched: who is taken for dead, see exchange.lua
--   <ns>:wake:<member>                channel  the queue that has something for it
--   <ns>:dead                         stream   dead letters: queue, reference, body, why
--
-- <group>/<id> is a message's reference. A message is in exactly one place: waiting (in its group), delayed or held.
-- A group with waiting messages has its turns. Messages without a group have the group "".
-- Times are milliseconds by Redis's clock. No key expires but the dead letters.

local function key(...)
    return table.concat({KEYS[1], ...}, ":")
end

local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function group_of(reference)
    return string.match(reference, "^(.*)/")
end

-- The queue and the reference of what is held.
local function split(held)
    return string.match(held, "^([^/]*)/(.*)$")
end

-- The groups that have waiting messages.
local function groups_of(queue)
    return redis.call("LRANGE", key("queue", queue, "turns"), 0, -1)
end

-- Wakes the one member that has waited longest. One that is gone does not hear it, and the next is tried.
local function wake(queue)
    while true do
        local member = redis.call("ZPOPMIN", key("queue", queue, "idle"))[1]
        if not member or redis.call("PUBLISH", key("wake", member), queue) > 0 then return end
    end
end

-- A group that had nothing waiting gets a turn after all others, or before them.
local function put(queue, reference, first)
    local push = first and "LPUSH" or "RPUSH"
    local group = group_of(reference)
    if redis.call(push, key("queue", queue, "group", group), reference) == 1 then
        redis.call(push, key("queue", queue, "turns"), group)
    end
end

-- Whoever waits is told when the next message is due: only an earlier one is news.
local function delay(queue, reference, delay_ms)
    local delayed = key("queue", queue, "delayed")
    redis.call("ZADD", delayed, now + delay_ms, reference)
    if redis.call("ZRANGE", delayed, 0, 0)[1] == reference then wake(queue) end
end

-- Gives the next message of the group whose turn it is into a member's hands; its group comes again after the others. One
-- that `passes_over(group)` is not taken from, and whoever asked gives it its turn back.
local function take(member, queue, passes_over)
    local turns = key("queue", queue, "turns")
    while true do
        local group = redis.call("LPOP", turns)
        if not group then return end
        if not passes_over(group) then
            local waiting = key("queue", queue, "group", group)
            local reference = redis.call("LPOP", waiting)
            if redis.call("EXISTS", waiting) == 1 then redis.call("RPUSH", turns, group) end
            local body = reference and redis.call("HGET", key("queue", queue), reference)
            if body then
                redis.call("SADD", key("held", member), queue .. "/" .. reference)
                return reference, body
            end
        end
    end
end

-- Takes a message out of a member's hands; whether it was there.
local function release(member, queue, reference)
    return redis.call("SREM", key("held", member), queue .. "/" .. reference) == 1
end

-- All that a member holds goes back to where it was taken from, and the member is forgotten.
local function dismiss(member)
    for _, held in ipairs(redis.call("SMEMBERS", key("held", member))) do
        local queue, reference = split(held)
        release(member, queue, reference)
        if redis.call("HEXISTS", key("queue", queue), reference) == 1 then
            put(queue, reference, true)
            wake(queue)
        end
    end
    redis.call("ZREM", key("members"), member)
end
