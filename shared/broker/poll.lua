-- A session's only regular request: heartbeat, settlement of finished messages, and fetch of new ones.
--
-- ARGV: session, session time-out in ms, free capacity, how many messages it knows to be in flight in it after these
--       settlements, its credit, number of queues, the queues in order of priority;
--       most messages of one group in flight in this session, most further messages of slow groups, number of groups
--       that have messages in flight here or are slow, of each: group, messages in flight, 1 if slow;
--       then of each settlement: disposition, queue, message key, body, delay in ms or reason.
-- Returns: now, how many messages the session has in flight, ms until the next delayed message is due (-1: none),
--          1 if the session is idle and has left no message waiting, the number of sessions;
--          then of each message fetched: queue, message key, body.

local session = ARGV[1]
local timeout_ms, free, known = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local credit, count = tonumber(ARGV[5]), tonumber(ARGV[6])
local queues = {unpack(ARGV, 7, 6 + count)}
local at = 7 + count
local group_limit, slow_free, groups = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
local in_flight, is_slow = {}, {}
at = at + 3
for _ = 1, groups do
    in_flight[ARGV[at]], is_slow[ARGV[at]] = tonumber(ARGV[at + 1]), ARGV[at + 2] == "1"
    at = at + 3
end

-- Start with a write that frees memory: at maxmemory, Redis rejects a script whose first write allocates, and the
-- queues could no longer be drained.
for _, queue in ipairs(queues) do
    redis.call("ZREM", key("queue", queue, "idle"), session)
end
redis.call("ZREM", key("sessions"), "")

local function settle(disposition, queue, message_key, body, detail)
    if disposition == "ack" then return acknowledge(session, queue, message_key) end
    local messages = key("queue", queue)
    -- A message in flight in another session is the other's to settle. A message that is nowhere was lost by Redis, and
    -- this session still has it.
    if not release(session, queue, message_key) and redis.call("HEXISTS", messages, message_key) == 1 then return end
    if disposition == "dead-letter" then
        redis.call("HDEL", messages, message_key)
        redis.call("XADD", key("dead-letters"), "MAXLEN", "~", 1000, "*",
            "queue", queue, "message_key", message_key, "body", body, "reason", detail)
        redis.call("PEXPIRE", key("dead-letters"), 7 * 24 * 3600 * 1000)
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

-- A session that has not polled for the time-out expires, and its messages in flight are requeued. But when no session
-- has polled for a while, Redis was away and none could: a grace period of one time-out begins, in which none expires.
local last_poll, grace_until, last_search = unpack(
    redis.call("HMGET", key("liveness"), "last_poll", "grace_until", "last_search"))
local silence = now - (tonumber(last_poll) or 0)
if silence > timeout_ms / 2 or silence < 0 then
    grace_until = now + timeout_ms
    redis.call("HSET", key("liveness"), "grace_until", grace_until)
end
redis.call("HSET", key("liveness"), "last_poll", now)
redis.call("ZADD", key("sessions"), now, session)
if now >= tonumber(grace_until) and math.abs(now - (tonumber(last_search) or 0)) >= 500 then
    redis.call("HSET", key("liveness"), "last_search", now)
    for _, dead in ipairs(redis.call("ZRANGEBYSCORE", key("sessions"), "-inf", now - timeout_ms, "LIMIT", 0, 10)) do
        expire_session(dead)
    end
    -- A session that v0.1.0-rc1 has expired leaves its credit and its tag. That is rare, so the look at all is, too.
    if redis.call("HLEN", key("credits")) > redis.call("ZCARD", key("sessions")) then
        for _, each in ipairs(redis.call("HKEYS", key("credits"))) do
            if not redis.call("ZSCORE", key("sessions"), each) then forget(each) end
        end
    end
    -- Redis's clock was set back: without this, these sessions could not expire for as long.
    for _, early in ipairs(redis.call("ZRANGEBYSCORE", key("sessions"), now + 1, "+inf")) do
        redis.call("ZADD", key("sessions"), now, early)
    end
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

-- A group is at its limit when it has as many messages in flight here as one group may. A slow group is also at its
-- limit when all slow groups together are.
local skipped
local function at_limit(group)
    if group == "" then return false end
    if (in_flight[group] or 0) < group_limit and not (is_slow[group] and slow_free <= 0) then return false end
    table.insert(skipped, group)
    return true
end

local fetched = {}
for _, queue in ipairs(queues) do
    skipped = {}
    while free > 0 do
        local message_key, body = fetch(session, queue, at_limit)
        if not message_key then break end
        for _, part in ipairs({queue, message_key, body}) do table.insert(fetched, part) end
        free = free - 1
        local group = group_of(message_key)
        in_flight[group] = (in_flight[group] or 0) + 1
        if is_slow[group] then slow_free = slow_free - 1 end
    end
    -- Skipped groups stay first in the rotation: for another session, or for this one when it has settled something.
    for each = #skipped, 1, -1 do redis.call("LPUSH", key("queue", queue, "rotation"), skipped[each]) end
end

-- A session with free capacity registers as idle, to be woken or pushed to. A full one leaves what is waiting to another
-- session.
local leaves_any = false
for _, queue in ipairs(queues) do
    local is_waiting = redis.call("EXISTS", key("queue", queue, "rotation")) == 1
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
return {now, in_flight_now, due_ms, is_idle, redis.call("ZCARD", key("sessions")), unpack(fetched)}
