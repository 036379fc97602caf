-- Stores messages. A message whose key is already there is skipped: a producer that got no reply may safely repeat.
-- ARGV: most bounded messages of one group, most bytes of theirs;
--       then of each message: queue, message key, body, delay in ms, tag of the session it should go to ("": any),
--       1 if it is bounded, its unique name ("": none), 1 if it supersedes another of that name.
-- Returns: the positions of the messages refused, from 1: their groups have as much in the queues as they may.

-- The most idle sessions looked at for one message.
local LOOKED_AT = 10
-- A session polls each second. One that has not for so long may be frozen, and would keep what is pushed to it.
local FRESH_MS = 2000

-- What is counted is compared with the queues this often, and if a group seems to be full, this often: a worker of
-- v0.1.0-rc1 deletes messages without counting.
local CHECK_MS, CHECK_FULL_MS = 60000, 1000

local most_messages, most_bytes = tonumber(ARGV[1]), tonumber(ARGV[2])
local turn = 0

-- Removes from a group's bounded messages those that are in no queue any more.
local function check_bounded(bounded)
    local bytes, names = 0, redis.call("HGETALL", bounded)
    for at = 1, #names, 2 do
        local queue, message_key = split(names[at])
        if queue then
            if redis.call("HEXISTS", key("queue", queue), message_key) == 1 then
                bytes = bytes + names[at + 1]
            else
                redis.call("HDEL", bounded, names[at])
            end
        end
    end
    redis.call("HSET", bounded, "bytes", bytes, "checked", now)
end

-- Counts a message against the bounds of its group. Returns whether it fits.
local function count(queue, message_key, size)
    local bounded, name = key("bounded", group_of(message_key)), queue .. "/" .. message_key
    local function fits(fields, bytes)
        -- Two of the fields are no messages.
        return fields - 2 < most_messages and bytes + size <= most_bytes
    end
    local fields = redis.call("HLEN", bounded)
    if fields == 0 then
        local has_room = fits(2, 0)
        if has_room then redis.call("HSET", bounded, name, size, "bytes", size, "checked", now) end
        return has_room
    end
    local bytes, checked = unpack(redis.call("HMGET", bounded, "bytes", "checked"))
    local has_room = fits(fields, bytes)
    if math.abs(now - checked) > (has_room and CHECK_MS or CHECK_FULL_MS) then
        check_bounded(bounded)
        has_room = fits(redis.call("HLEN", bounded), redis.call("HGET", bounded, "bytes"))
    end
    if has_room then
        redis.call("HSET", bounded, name, size)
        redis.call("HINCRBY", bounded, "bytes", size)
    end
    return has_room
end

local function has_polled_lately(session)
    local last_poll = tonumber(redis.call("ZSCORE", key("sessions"), session))
    return last_poll and now - last_poll <= FRESH_MS
end

-- Returns the session of that tag if it is idle and alive, or else nil.
local function idle_session_of(tag, queue)
    local session = tag ~= "" and redis.call("HGET", key("tags"), tag)
    local is_idle = session and redis.call("ZSCORE", key("queue", queue, "idle"), session)
    return is_idle and has_polled_lately(session) and session or nil
end

-- Moves a message in flight for an idle session and publishes it on the session's channel, within its credit. The session
-- stays idle, the last in turn. Returns whether it was pushed: a session without a subscriber is gone.
local function push_to(session, queue, message_key, body)
    local credit = tonumber(redis.call("HGET", key("credits"), session)) or 0
    if credit <= 0 or not has_polled_lately(session) then return false end
    -- No name of a queue has a slash, so this is never mistaken for a wake-up.
    local pushed = queue .. "/" .. #message_key .. "/" .. message_key .. body
    if redis.call("PUBLISH", key("wake", session), pushed) == 0 then
        forget(session)
        redis.call("ZREM", key("queue", queue, "idle"), session)
        return false
    end
    redis.call("SADD", key("in-flight", session), queue .. "/" .. message_key)
    redis.call("HINCRBY", key("credits"), session, -1)
    -- Later than the one before, within this millisecond.
    turn = turn + 1
    redis.call("ZADD", key("queue", queue, "idle"), now + turn / 1000, session)
    return true
end

-- Returns whether messages wait that one of this group may not overtake: any in the rotation, those of its own group, and
-- if it is slow, those of the slow groups that were set aside.
local function must_wait(queue, group)
    local rotation, own = key("queue", queue, "rotation"), key("queue", queue, "group", group)
    if redis.call("EXISTS", rotation, own) > 0 then return true end
    return redis.call("EXISTS", key("queue", queue, "aside")) == 1
        and redis.call("ZSCORE", key("queue", queue, "slow"), group) and true or false
end

-- Pushes a message to the session it should go to or, without one, to the session that has been idle longest. But no
-- message may overtake those that wait. Returns whether it was pushed.
local function push(queue, message_key, body, wanted)
    if must_wait(queue, group_of(message_key)) then return false end
    -- One without a credit still has capacity for most groups: it is woken instead.
    if wanted then return push_to(wanted, queue, message_key, body) end
    for _, session in ipairs(redis.call("ZRANGE", key("queue", queue, "idle"), 0, LOOKED_AT - 1)) do
        if push_to(session, queue, message_key, body) then return true end
    end
    return false
end

-- Of the messages of one unique name, one waits, or is delayed; one that a session has in work is another. The name is
-- kept for longer than any of them is delayed.
local UNIQUE_MS = 600000

-- Takes the place of the message that waits under a unique name. Returns whether that is all there is to do, or else
-- the delay that is left to the message.
local function take_place(queue, message_key, body, delay_ms, name, supersedes)
    local place = key("unique", queue .. "/" .. group_of(message_key) .. "/" .. name)
    local other = redis.call("GET", place)
    local delayed, waiting = key("queue", queue, "delayed"), key("queue", queue, "group", group_of(message_key))
    local due = other and tonumber(redis.call("ZSCORE", delayed, other))
    local position = other and not due and redis.call("LPOS", waiting, other)
    if (due or position) and not supersedes then
        redis.call("PEXPIRE", place, UNIQUE_MS)
        return true
    end
    redis.call("SET", place, message_key, "PX", UNIQUE_MS)
    if due then
        redis.call("ZREM", delayed, other)
        delete(queue, other)
        return false, math.max(0, math.min(delay_ms, due - now))
    end
    if position then
        redis.call("LSET", waiting, position, message_key)
        delete(queue, other)
        redis.call("HSET", key("queue", queue), message_key, body)
    end
    return position and true or false, delay_ms
end

-- Stores a message. Returns whether it was accepted, now or before.
local function store(queue, message_key, body, delay_ms, tag, is_bounded, name, supersedes)
    if redis.call("HEXISTS", key("queue", queue), message_key) == 1 then return true end
    if name ~= "" then
        local is_done
        is_done, delay_ms = take_place(queue, message_key, body, delay_ms, name, supersedes)
        if is_done then return true end
    end
    if is_bounded and not count(queue, message_key, #body) then return false end
    redis.call("HSET", key("queue", queue), message_key, body)
    if delay_ms > 0 then
        delay(queue, message_key, delay_ms)
    else
        local wanted = idle_session_of(tag, queue)
        if not push(queue, message_key, body, wanted) then
            add_waiting(queue, message_key, false)
            wake(queue, wanted)
        end
    end
    return true
end

local refused = {}
for at = 3, #ARGV, 8 do
    local queue, message_key, body, delay_ms, tag, is_bounded, name, supersedes = unpack(ARGV, at, at + 7)
    if not store(queue, message_key, body, tonumber(delay_ms), tag, is_bounded == "1", name, supersedes == "1") then
        table.insert(refused, (at - 3) / 8 + 1)
    end
end
return refused
