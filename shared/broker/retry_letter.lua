-- Puts the message of a dead letter back into its queue, once: the letter is deleted by the same script.
--
-- ARGV: id of the letter, queue, message key, body.
-- Returns: 0 if there is no such letter, 1 if its message is in the queue now, 2 if it was there already.

local id, queue, message_key, body = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

-- The first write frees memory: see poll.lua.
if redis.call("XDEL", key("dead-letters"), id) == 0 then return 0 end
if redis.call("HEXISTS", key("queue", queue), message_key) == 1 then return 2 end
-- Not bounded, and no other message takes its place: it is an order.
redis.call("HSET", key("queue", queue), message_key, body)
add_waiting(queue, message_key, false)
wake(queue)
return 1
