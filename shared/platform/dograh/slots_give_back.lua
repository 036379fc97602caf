-- Gives back a call's slot and the one that is bound to its run, and removes the notes of its channels.
-- `slots_registry.lua` is prepended.
--
-- KEYS: the registry of our slots (hash), the fleet's slots (zset), the run's binding (hash; empty without a run), the note
--       of the transfer that the call's destination came for (string; empty without one), then the note of each channel
--       (string).
-- ARGV: slot, organization, run (empty without one).

local fleet, binding, transfer = KEYS[2], KEYS[3], KEYS[4]

local function remove(of, which, scope)
    redis.call("ZREM", "concurrent_calls:" .. of, which)
    redis.call("ZREM", fleet, of .. ":" .. which)
    if scope and scope ~= "" then redis.call("ZREM", "concurrent_calls:" .. scope, which) end
end

forget_written(true)
if run ~= "" then
    local bound = redis.call("HMGET", binding, "org_id", "slot_id", "scope_key")
    -- Unless it is another call's of ours: two that were requested for one run took a slot each before one was refused.
    if bound[2] == slot or not bound[2] or redis.call("HEXISTS", registry, bound[2]) == 0 then
        if bound[1] and bound[2] then remove(bound[1], bound[2], bound[3]) end
        redis.call("DEL", binding)
    end
    for i = 5, #KEYS do forget_channel(KEYS[i], run) end
end
remove(organization, slot)
redis.call("HDEL", registry, slot)
if transfer ~= "" then redis.call("DEL", transfer) end
