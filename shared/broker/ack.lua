-- The short way to settle: acknowledges processed messages, and publishes the credit that this gives the session.
-- It is no heartbeat. It touches neither `liveness` nor `sessions`: a grace period begins, and a session lives, by polls
-- alone.
--
-- ARGV: session, how many messages it knows to be in flight in it after these, its credit, number of queues, the queues;
--       then of each message: queue, message key.
-- Returns: 1 if a message is waiting in one of the queues, for which the session should poll.

local session, known, credit, count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

-- The first write frees memory: see poll.lua.
for at = 5 + count, #ARGV, 2 do
    acknowledge(session, ARGV[at], ARGV[at + 1])
end

-- One that has none is not registered: it polls first.
if redis.call("HEXISTS", key("credits"), session) == 1 then publish_credit(session, known, credit) end

for at = 5, 4 + count do
    if is_any_waiting(ARGV[at]) then return 1 end
end
return 0
