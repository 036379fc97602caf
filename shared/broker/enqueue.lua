-- Stores messages. A message whose key is already there is skipped: a producer that got no reply may safely repeat.
-- ARGV: of each message: queue, message key, body, delay in ms, tag of the session it should go to ("": any).

-- The most idle sessions looked at for one message.
local LOOKED_AT = 10
-- A session polls each second. One that has not for so long may be frozen, and would keep what is pushed to it.
local FRESH_MS = 2000

local turn = 0

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

-- Pushes a message to the session it should go to or, without one, to the session that has been idle longest. But no
-- message may overtake those that wait. Returns whether it was pushed.
local function push(queue, message_key, body, wanted)
    if redis.call("EXISTS", key("queue", queue, "rotation")) == 1 then return false end
    -- One without a credit still has capacity for most groups: it is woken instead.
    if wanted then return push_to(wanted, queue, message_key, body) end
    for _, session in ipairs(redis.call("ZRANGE", key("queue", queue, "idle"), 0, LOOKED_AT - 1)) do
        if push_to(session, queue, message_key, body) then return true end
    end
    return false
end

for at = 1, #ARGV, 5 do
    local queue, message_key, body, delay_ms, tag = unpack(ARGV, at, at + 4)
    if redis.call("HSETNX", key("queue", queue), message_key, body) == 1 then
        if tonumber(delay_ms) > 0 then
            delay(queue, message_key, tonumber(delay_ms))
        else
            local wanted = idle_session_of(tag, queue)
            if not push(queue, message_key, body, wanted) then
                add_waiting(queue, message_key, false)
                wake(queue, wanted)
            end
        end
    end
end
