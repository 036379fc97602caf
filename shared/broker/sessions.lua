-- Expires the sessions that show no life, as each poll does, for one who has no session: as long as it looks, Redis is known
-- not to be away, also while no worker lives.
--
-- ARGV: session time-out in ms.
-- Returns: the sessions; nothing while it is not known which live: Redis was away or emptied, and they may not have polled
--          since.

-- The first write frees memory: see poll.lua.
redis.call("ZREM", key("sessions"), "")
return expire_silent(tonumber(ARGV[1])) and redis.call("ZRANGE", key("sessions"), 0, -1)
