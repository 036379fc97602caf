-- A member's one request: it lives, what became of the messages it held, how many more it can take.
--
-- ARGV: member, heartbeat time-out in ms, room, number of queues, the queues in order of need;
--       most held by this member of one group, most of slow groups still to be taken, number of groups of which it holds
--       some or that are slow, of each: group, messages held, 1 if slow;
--       then of each settlement: verdict, queue, reference, body, delay in ms or why.
-- Gives: now, how many it holds, in how many ms the next delayed message is due (-1: none);
--        then of each message taken: queue, reference, body.

local member = ARGV[1]
local timeout_ms, room, count = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local queues = {unpack(ARGV, 5, 4 + count)}
local at = 5 + count
local share, slow_room, groups = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
local in_hand, is_slow = {}, {}
at = at + 3
for _ = 1, groups do
    in_hand[ARGV[at]], is_slow[ARGV[at]] = tonumber(ARGV[at + 1]), ARGV[at + 2] == "1"
    at = at + 3
end

-- Before anything that needs memory: a full Redis refuses a script whose first write does. Its queues must be emptied.
for _, queue in ipairs(queues) do
    redis.call("ZREM", key("queue", queue, "idle"), member)
end
redis.call("ZREM", key("members"), "")

local function settle(verdict, queue, reference, body, detail)
    local messages = key("queue", queue)
    -- What is not in its hands any more is another's to settle. What is nowhere, Redis has lost: the member still has it.
    local is_ours = release(member, queue, reference)
    if not is_ours and (verdict == "done" or redis.call("HEXISTS", messages, reference) == 1) then return end
    if verdict == "done" then
        redis.call("HDEL", messages, reference)
    elseif verdict == "dead" then
        redis.call("HDEL", messages, reference)
        redis.call("XADD", key("dead"), "MAXLEN", "~", 1000, "*",
            "queue", queue, "reference", reference, "body", body, "reason", detail)
        redis.call("PEXPIRE", key("dead"), 7 * 24 * 3600 * 1000)
    else
        redis.call("HSET", messages, reference, body)
        if verdict == "again" and tonumber(detail) > 0 then
            delay(queue, reference, tonumber(detail))
        else
            put(queue, reference, verdict == "back")
            wake(queue)
        end
    end
end

for each = at, #ARGV, 5 do
    settle(unpack(ARGV, each, each + 4))
end

-- Who is silent for longer than the time-out is dead, and what it holds is others'. But when nobody was heard for a
-- while, Redis was away, and so could nobody be heard: all are spared for one time-out.
local beat, spared_until, searched = unpack(redis.call("HMGET", key("watch"), "beat", "spared_until", "searched"))
local silence = now - (tonumber(beat) or 0)
if silence > timeout_ms / 2 or silence < 0 then
    spared_until = now + timeout_ms
    redis.call("HSET", key("watch"), "spared_until", spared_until)
end
redis.call("HSET", key("watch"), "beat", now)
redis.call("ZADD", key("members"), now, member)
if now >= tonumber(spared_until) and math.abs(now - (tonumber(searched) or 0)) >= 500 then
    redis.call("HSET", key("watch"), "searched", now)
    for _, dead in ipairs(redis.call("ZRANGEBYSCORE", key("members"), "-inf", now - timeout_ms, "LIMIT", 0, 10)) do
        dismiss(dead)
    end
    -- Redis's clock was set back: these could not be found dead for as long.
    for _, early in ipairs(redis.call("ZRANGEBYSCORE", key("members"), now + 1, "+inf")) do
        redis.call("ZADD", key("members"), now, early)
    end
end

local due_ms = -1
for _, queue in ipairs(queues) do
    local delayed = key("queue", queue, "delayed")
    for _, reference in ipairs(redis.call("ZRANGEBYSCORE", delayed, "-inf", now, "LIMIT", 0, 100)) do
        redis.call("ZREM", delayed, reference)
        put(queue, reference, false)
    end
    local due = tonumber(redis.call("ZRANGE", delayed, 0, 0, "WITHSCORES")[2])
    if due and (due_ms < 0 or due - now < due_ms) then due_ms = math.max(0, due - now) end
end

-- A group has its share of this member when it holds as many places as one may, or when all slow ones do together.
local passed
local function has_share(group)
    if group == "" then return false end
    if (in_hand[group] or 0) < share and not (is_slow[group] and slow_room <= 0) then return false end
    table.insert(passed, group)
    return true
end

local taken = {}
for _, queue in ipairs(queues) do
    passed = {}
    while room > 0 do
        local reference, body = take(member, queue, has_share)
        if not reference then break end
        for _, part in ipairs({queue, reference, body}) do table.insert(taken, part) end
        room = room - 1
        local group = group_of(reference)
        in_hand[group] = (in_hand[group] or 0) + 1
        if is_slow[group] then slow_room = slow_room - 1 end
    end
    -- It is their turn still: of another member, or of this one when it has settled something.
    for each = #passed, 1, -1 do redis.call("LPUSH", key("queue", queue, "turns"), passed[each]) end
end

-- A member that can take more wants to be woken; one that cannot leaves what is left to another.
for _, queue in ipairs(queues) do
    if room > 0 then
        redis.call("ZADD", key("queue", queue, "idle"), now, member)
    elseif redis.call("EXISTS", key("queue", queue, "turns")) == 1 then
        wake(queue)
    end
end

return {now, redis.call("SCARD", key("held", member)), due_ms, unpack(taken)}
