-- A session's only regular request: heartbeat, settlement of finished messages, and fetch of new ones.
--
-- ARGV: session, session time-out in ms, for how many ms it has had its oldest message (-1: none),
--       most dead letters, most bytes of a body and of a reason among them, free capacity, how many messages it knows to be in flight in it after these settlements, its credit,
--       number of queues, the queues in order of priority;
--       most messages of one group in flight in this session, most further messages of slow groups, number of groups
--       that have messages in flight here or were slow lately, of each: group, messages in flight, for how many ms it
--       counts as slow (0: not);
--       then of each settlement: disposition, queue, message key, body, delay in ms or reason.
-- Returns: now, how many messages the session has in flight, ms until the next delayed message is due (-1: none),
--          1 if the session is idle and has left no message waiting, the number of sessions, the number of subscriptions
--          to the session's channel here;
--          then of each message fetched: queue, message key, body.

local session = ARGV[1]
local timeout_ms, oldest_ms = tonumber(ARGV[2]), tonumber(ARGV[3])
local most_letters, letter_bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
local free, known, credit, count = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local queues = {unpack(ARGV, 10, 9 + count)}
local at = 10 + count
local group_limit, slow_free, groups = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
local in_flight, slow = {}, {}
at = at + 3
for _ = 1, groups do
    in_flight[ARGV[at]] = tonumber(ARGV[at + 1])
    if tonumber(ARGV[at + 2]) > 0 then
        table.insert(slow, now + ARGV[at + 2])
        table.insert(slow, ARGV[at])
    end
    at = at + 3
end

-- Start with a write that frees memory: at maxmemory, Redis rejects a script whose first write allocates, and the
-- queues could no longer be drained.
for _, queue in ipairs(queues) do
    redis.call("ZREM", key("queue", queue, "idle"), session)
end
redis.call("ZREM", key("sessions"), "")

local LETTERS_MS = 7 * 24 * 3600 * 1000

-- Keeps the beginning of a message that failed. The oldest letters go first, and those that went early are counted.
local function add_letter(queue, message_key, body, reason)
    local letters = key("dead-letters")
    redis.call("XTRIM", letters, "MINID", now - LETTERS_MS)
    redis.call("XADD", letters, "*", "queue", queue, "message_key", message_key,
        "body", string.sub(body, 1, letter_bytes), "reason", string.sub(reason, 1, letter_bytes))
    local dropped = redis.call("XTRIM", letters, "MAXLEN", most_letters)
    if dropped > 0 then
        redis.call("INCRBY", key("dead-letters-dropped"), dropped)
        redis.call("PEXPIRE", key("dead-letters-dropped"), LETTERS_MS)
    end
    redis.call("PEXPIRE", letters, LETTERS_MS)
end

local function settle(disposition, queue, message_key, body, detail)
    if disposition == "ack" then return acknowledge(session, queue, message_key) end
    local messages = key("queue", queue)
    -- A message in flight in another session is the other's to settle. A message that is nowhere was lost by Redis, and
    -- this session still has it.
    if not release(session, queue, message_key) and redis.call("HEXISTS", messages, message_key) == 1 then return end
    if disposition == "dead-letter" then
        delete(queue, message_key)
        add_letter(queue, message_key, body, detail)
    else
        redis.call("HSET", messages, message_key, body)
        if disposition == "retry" and tonumber(detail) > 0 then
            delay(queue, message_key, tonumber(detail))
        else
            add_waiting(queue, message_key, disposition == "requeue")
            wake(queue)
        end
    end
end

for each = at, #ARGV, 5 do
    settle(unpack(ARGV, each, each + 4))
end

redis.call("ZADD", key("sessions"), now, session)
expire_silent(timeout_ms)
-- For operators alone.
if oldest_ms < 0 then
    redis.call("HDEL", key("oldest"), session)
else
    redis.call("HSET", key("oldest"), session, now - oldest_ms)
end

local due_ms = -1
for _, queue in ipairs(queues) do
    local delayed = key("queue", queue, "delayed")
    for _, message_key in ipairs(redis.call("ZRANGEBYSCORE", delayed, "-inf", now, "LIMIT", 0, 100)) do
        redis.call("ZREM", delayed, message_key)
        add_waiting(queue, message_key, false)
    end
    local due = tonumber(redis.call("ZRANGE", delayed, 0, 0, "WITHSCORES")[2])
    if due and (due_ms < 0 or due - now < due_ms) then due_ms = math.max(0, due - now) end
end

-- What was pushed to this session and is still on its way, or lost, may be of any group and takes capacity as well.
local on_their_way = unknown(session, known)
free, group_limit, slow_free = free - on_their_way, group_limit - on_their_way, slow_free - on_their_way

-- Which groups are slow is stored for each queue, and known to all sessions that serve it. Those that are slow no more
-- return to the rotation.
local function update_slow(queue)
    local name = key("queue", queue, "slow")
    for _, group in ipairs(redis.call("ZRANGEBYSCORE", name, "-inf", now, "LIMIT", 0, 100)) do
        redis.call("ZREM", name, group)
        if redis.call("ZREM", key("queue", queue, "aside"), group) == 1 then
            redis.call("RPUSH", key("queue", queue, "rotation"), group)
        end
    end
    if #slow > 0 then redis.call("ZADD", name, "GT", unpack(slow)) end
end

local function is_slow(queue, group)
    return group ~= "" and redis.call("ZSCORE", key("queue", queue, "slow"), group) and true or false
end

-- A worker of v0.1.0-rc1 publishes no credit, and looks at the rotation only: beside it no group is set aside.
redis.call("HSETNX", key("credits"), session, 0)
local may_set_aside = redis.call("HLEN", key("credits")) >= redis.call("ZCARD", key("sessions"))
-- One poll sets so many groups aside; if there are more, the next poll follows at once.
local left_aside = 200

-- Sets a slow group aside while all slow groups together are at their limit: so none of them is looked at again, however
-- many they are, before one has a place.
local function set_aside(queue, group)
    local aside = key("queue", queue, "aside")
    local last = tonumber(redis.call("ZRANGE", aside, -1, -1, "WITHSCORES")[2]) or 0
    redis.call("ZADD", aside, last + 1, group)
    left_aside = left_aside - 1
end

-- A group is at its limit when it has as many messages in flight here as one group may. A slow group is also at its
-- limit when all slow groups together are. Takes the next group that is not at its limit from the rotation; those at
-- their own limit, which are no more than this session has messages in flight, are skipped.
local function next_group(queue, skipped)
    while left_aside > 0 do
        local group = redis.call("LPOP", key("queue", queue, "rotation"))
        if not group then return end
        if slow_free <= 0 and may_set_aside and is_slow(queue, group) then
            set_aside(queue, group)
        elseif group ~= "" and ((in_flight[group] or 0) >= group_limit or slow_free <= 0 and is_slow(queue, group)) then
            table.insert(skipped, group)
        else
            return group
        end
    end
end

-- Moves the next message of the next group in flight and puts the group at the end of the rotation.
local function fetch(queue, skipped)
    for group in function() return next_group(queue, skipped) end do
        local waiting = key("queue", queue, "group", group)
        local message_key = redis.call("LPOP", waiting)
        if redis.call("EXISTS", waiting) == 1 then redis.call("RPUSH", key("queue", queue, "rotation"), group) end
        local body = message_key and redis.call("HGET", key("queue", queue), message_key)
        if body then
            redis.call("SADD", key("in-flight", session), queue .. "/" .. message_key)
            in_flight[group] = (in_flight[group] or 0) + 1
            if is_slow(queue, group) then slow_free = slow_free - 1 end
            return message_key, body
        end
    end
end

local fetched = {}
for _, queue in ipairs(queues) do
    local skipped, left_before = {}, left_aside
    update_slow(queue)
    if not may_set_aside then
        put_all_back(queue)
    elseif free > 0 and slow_free > 0 then
        put_back(queue, math.min(free, slow_free))
    end
    while free > 0 and group_limit > 0 do
        local message_key, body = fetch(queue, skipped)
        if not message_key then break end
        for _, part in ipairs({queue, message_key, body}) do table.insert(fetched, part) end
        free = free - 1
    end
    -- Skipped groups stay first in the rotation: for another session, or for this one when it has settled something.
    for each = #skipped, 1, -1 do redis.call("LPUSH", key("queue", queue, "rotation"), skipped[each]) end
    -- Another session may have capacity for what was set aside.
    if left_aside < left_before then wake(queue) end
end
if left_aside <= 0 then due_ms = 0 end

-- A session with free capacity registers as idle, to be woken or pushed to. A full one leaves what is waiting to another
-- session.
local leaves_any = false
for _, queue in ipairs(queues) do
    local is_waiting = is_any_waiting(queue)
    leaves_any = leaves_any or is_waiting
    if free > 0 then
        redis.call("ZADD", key("queue", queue, "idle"), now, session)
    elseif is_waiting then
        wake(queue)
    end
end

-- Each message fetched may be of the group that has the least left.
publish_credit(session, known, credit)
if tag_of(session) then redis.call("HSET", key("tags"), tag_of(session), session) end

local in_flight_now = redis.call("SCARD", key("in-flight", session))
local is_idle = free > 0 and not leaves_any and 1 or 0
local subscriptions = redis.call("PUBSUB", "NUMSUB", key("wake", session))[2]
return {now, in_flight_now, due_ms, is_idle, redis.call("ZCARD", key("sessions")), subscriptions, unpack(fetched)}
