-- The keys, and the moves of a message between them. Prepended to each of the scripts.
--
-- KEYS[1] is the namespace, with which every key begins; written as {name}, all keys lie in one slot of a cluster.
--
--   <ns>:queue:<queue>                hash     <group>/<id> -> body: every message of the queue, in whatever state
--   <ns>:queue:<queue>:group:<group>  list     <group>/<id> of the group's waiting messages, the next one first
--   <ns>:queue:<queue>:rotation       list     the groups with waiting messages, the next one first (round robin)
--   <ns>:queue:<queue>:aside          zset     the groups with waiting messages that were set aside, in their order: see poll.lua
--   <ns>:queue:<queue>:slow           zset     group -> until when it counts as slow
--   <ns>:queue:<queue>:delayed        zset     <group>/<id> -> when it is due
--   <ns>:queue:<queue>:idle           zset     session -> since when it has been waiting for messages of the queue
--   <ns>:sessions                     zset     session -> its last poll
--   <ns>:gone                         hash     session -> since when it is late and has no subscription: see is_gone
--   <ns>:credits                      hash     session -> how many more messages may be pushed to it
--   <ns>:oldest                       hash     session -> since when it has had its oldest message, as of its last poll
--   <ns>:tags                         hash     tag -> the session of that tag
--   <ns>:in-flight:<session>          set      <queue>/<group>/<id> of each message delivered and not yet acknowledged
--   <ns>:liveness                     hash     last_poll, grace_until, last_search: see expire_silent
--   <ns>:wake:<session>               channel  the queue that has a message for the session, or a whole message: see enqueue.lua
--   <ns>:bounded:<group>              hash     <queue>/<group>/<id> -> its size in bytes, of each bounded message of the group;
--                                              bytes: the sum, checked: when they were last compared with the queues
--   <ns>:unique:<queue>/<group>/<name>  string  the key of the message that waits under this name, if it waits still
--   <ns>:dead-letters                 stream   queue, message_key, body, reason: the beginnings of these two
--   <ns>:dead-letters-dropped         string   how many were deleted for later ones; kept as long as letters are
--
-- <group>/<id> is the message key. A message is in exactly one state: waiting (in its group), delayed or in flight.
-- A group is in the rotation, or set aside, exactly while it has waiting messages. Messages without a group have the
-- group "".
-- A session has a credit, and a tag, only while it is among the sessions: so what is pushed to it is requeued when it dies.
-- A message that is bounded counts against what its group may have in the queues, in whatever state: see enqueue.lua.
-- Times are milliseconds by Redis's clock. No key expires except those of the dead letters and the unique names.

local function key(...)
    return table.concat({KEYS[1], ...}, ":")
end

local clock = redis.call("TIME")
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function group_of(message_key)
    return string.match(message_key, "^(.*)/")
end

-- Splits a member of an in-flight set into the queue and the message key.
local function split(in_flight)
    return string.match(in_flight, "^([^/]*)/(.*)$")
end

-- Returns the groups that have waiting messages.
local function waiting_groups(queue)
    local groups = redis.call("LRANGE", key("queue", queue, "rotation"), 0, -1)
    for _, group in ipairs(redis.call("ZRANGE", key("queue", queue, "aside"), 0, -1)) do table.insert(groups, group) end
    return groups
end

-- Returns whether a message is waiting in a queue.
local function is_any_waiting(queue)
    return redis.call("EXISTS", key("queue", queue, "rotation"), key("queue", queue, "aside")) > 0
end

-- Puts the groups that were set aside into the rotation again: the first ones, or all.
local function put_back(queue, number)
    local groups = redis.call("ZPOPMIN", key("queue", queue, "aside"), number)
    for at = #groups - 1, 1, -2 do redis.call("LPUSH", key("queue", queue, "rotation"), groups[at]) end
end

local function put_all_back(queue)
    put_back(queue, math.max(1, redis.call("ZCARD", key("queue", queue, "aside"))))
end

-- Wakes one idle session: the one that is wanted, if any, or else the one that has been idle longest. A session without a
-- subscriber is gone, so the next one is tried.
local function wake(queue, wanted)
    local idle = key("queue", queue, "idle")
    local session = wanted or redis.call("ZRANGE", idle, 0, 0)[1]
    if not session then return end
    redis.call("ZREM", idle, session)
    if redis.call("PUBLISH", key("wake", session), queue) == 0 then return wake(queue) end
end

-- Adds a message to the end of its group, or to the front. A group that had no waiting message enters the rotation
-- at the same end; one that is set aside stays there.
local function add_waiting(queue, message_key, to_front)
    local push = to_front and "LPUSH" or "RPUSH"
    local group = group_of(message_key)
    if redis.call(push, key("queue", queue, "group", group), message_key) == 1 then
        redis.call(push, key("queue", queue, "rotation"), group)
    end
end

-- Idle sessions know when the next message is due. So a session is woken only for a message that is due earlier.
local function delay(queue, message_key, delay_ms)
    local delayed = key("queue", queue, "delayed")
    redis.call("ZADD", delayed, now + delay_ms, message_key)
    if redis.call("ZRANGE", delayed, 0, 0)[1] == message_key then wake(queue) end
end

-- Takes a message off a session's in-flight set. Returns whether it was there.
local function release(session, queue, message_key)
    return redis.call("SREM", key("in-flight", session), queue .. "/" .. message_key) == 1
end

-- Deletes a message. It no longer counts against the bounds of its group.
local function delete(queue, message_key)
    redis.call("HDEL", key("queue", queue), message_key)
    local bounded, name = key("bounded", group_of(message_key)), queue .. "/" .. message_key
    local size = redis.call("HGET", bounded, name)
    if not size then return end
    if redis.call("HINCRBY", bounded, "bytes", -size) > 0 then
        redis.call("HDEL", bounded, name)
    else
        redis.call("DEL", bounded)
    end
end

-- Deletes a message that was processed. One that is in flight in another session is the other's to settle.
local function acknowledge(session, queue, message_key)
    if release(session, queue, message_key) then delete(queue, message_key) end
end

-- Returns how many messages are in flight in a session without its knowledge: on their way to it, or lost.
local function unknown(session, known)
    return math.max(0, redis.call("SCARD", key("in-flight", session)) - known)
end

-- A session reckons its credit without the messages that are on their way to it.
local function publish_credit(session, known, credit)
    redis.call("HSET", key("credits"), session, math.max(0, credit - unknown(session, known)))
end

-- A session's id ends in "/<tag>-<random>".
local function tag_of(session)
    return string.match(session, "/(%x+)%-%x+$")
end

-- Forgets what a session has published about itself. The tag may be another session's by now.
local function forget(session)
    redis.call("HDEL", key("credits"), session)
    redis.call("HDEL", key("gone"), session)
    redis.call("HDEL", key("oldest"), session)
    local tag = tag_of(session)
    if tag and redis.call("HGET", key("tags"), tag) == session then redis.call("HDEL", key("tags"), tag) end
end

-- Requeues every message that a session has in flight, at the front, and forgets the session.
local function expire_session(session)
    forget(session)
    for _, in_flight in ipairs(redis.call("SMEMBERS", key("in-flight", session))) do
        local queue, message_key = split(in_flight)
        release(session, queue, message_key)
        if redis.call("HEXISTS", key("queue", queue), message_key) == 1 then
            add_waiting(queue, message_key, true)
            wake(queue)
        end
    end
    redis.call("ZREM", key("sessions"), session)
end

-- A session polls every second, and at once when it subscribes. One whose last poll is older than this is looked at.
local LATE_MS = 600
-- A session that lives and has lost its connections has polled again after so long.
local CONFIRMED_MS = 700

-- Returns whether a late session is gone: the sockets of a process that was killed are closed, those of one that stalls
-- are not. It is gone when it has no subscription, and had none at a look a while before, with no poll in between: when
-- its connections were cut, it has polled again.
local function is_gone(session, last_poll)
    if redis.call("PUBSUB", "NUMSUB", key("wake", session))[2] > 0 then return false end
    local since = tonumber(redis.call("HGET", key("gone"), session))
    if not since or since < last_poll then
        redis.call("HSET", key("gone"), session, now)
        return false
    end
    return now - since >= CONFIRMED_MS
end

-- Expires the sessions that show no life, and returns whether it is known which do. A session expires when it has not
-- polled for the time-out, and sooner when it is gone.
--
-- When no session has polled for a while, Redis was away and none could: a grace period of one time-out begins, in which
-- none expires. After a shorter while it is looked for the gone ones anew.
local function expire_silent(timeout_ms)
    local liveness = key("liveness")
    local last_poll, grace_until, last_search = unpack(
        redis.call("HMGET", liveness, "last_poll", "grace_until", "last_search"))
    local silence = now - (tonumber(last_poll) or 0)
    if silence > timeout_ms / 2 or silence < 0 then
        grace_until = now + timeout_ms
        redis.call("HSET", liveness, "grace_until", grace_until)
    end
    if silence >= CONFIRMED_MS then redis.call("DEL", key("gone")) end
    redis.call("HSET", liveness, "last_poll", now)
    if now < tonumber(grace_until) then return false end
    if math.abs(now - (tonumber(last_search) or 0)) < 250 then return true end
    redis.call("HSET", liveness, "last_search", now)
    local late = redis.call("ZRANGEBYSCORE", key("sessions"), "-inf", now - LATE_MS, "WITHSCORES", "LIMIT", 0, 100)
    for at = 1, #late, 2 do
        local session, polled = late[at], tonumber(late[at + 1])
        if polled <= now - timeout_ms or is_gone(session, polled) then expire_session(session) end
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
    return true
end
