-- Takes a call's slot by the platform's own rules, binds it to the call's run, and notes the run of its channels.
-- `slots_registry.lua` is prepended.
--
-- KEYS: the registry of our slots (hash), the organization's slots (zset), the fleet's slots (zset), the run's binding
--       (hash; empty if the run is not known yet), then the note of each channel (string).
-- ARGV: slot, organization, run (empty if not known yet), limit (empty for any number), what the registry keeps, how many
--       seconds ago the call began, and "bind" if the call is written: its run is this one, and a slot is not taken.
-- Returns 1 if the call has a slot, 0 if every slot is used, -1 if it has none and was to get none.

local slots, fleet, binding = KEYS[2], KEYS[3], KEYS[4]
local limit, kept, age, only_binds = ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7] == "bind"

local clock = redis.call("TIME")
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
-- The platform's: a slot that was taken earlier counts no more.
local stale = now - 1200

local is_registered = redis.call("HEXISTS", registry, slot) == 1
-- It was reported twice, or its worker has died: which run it will have is not known.
if is_registered and not only_binds then return 1 end
-- A run that the platform has begun has its slot already.
local is_bound = run ~= "" and redis.call("EXISTS", binding) == 1
-- A registered one may not count any more: its leg had a call that Postgres has forgotten, whose pipeline has ended.
if not is_bound and not redis.call("ZSCORE", slots, slot) then
    if only_binds and not is_registered then return -1 end
    redis.call("ZREMRANGEBYSCORE", slots, 0, stale)
    if limit ~= "" and redis.call("ZCARD", slots) >= tonumber(limit) then return 0 end
    redis.call("ZADD", slots, now - age, slot)
    redis.call("EXPIRE", slots, 3600)
    redis.call("ZREMRANGEBYSCORE", fleet, 0, stale)
    redis.call("ZADD", fleet, now - age, organization .. ":" .. slot)
    redis.call("EXPIRE", fleet, 3600)
end
local written, earlier = registered()
forget_written(false)
if run ~= "" then
    if not is_bound then
        redis.call("HSET", binding, "org_id", organization, "slot_id", slot)
        redis.call("EXPIRE", binding, 1200)
    end
    -- Never over the note of another run: a PBX may name its channels as it likes.
    for i = 5, #KEYS do redis.call("SET", KEYS[i], run, "EX", 3600, "NX") end
end
if written == run then
    -- Of a call that Postgres has forgotten, or of an earlier attempt.
    local entry, known = cjson.decode(kept), {}
    for _, channel in ipairs(entry[3]) do known[channel] = true end
    for _, channel in ipairs(earlier) do
        if not known[channel] then table.insert(entry[3], channel) end
    end
    kept = cjson.encode(entry)
end
redis.call("HSET", registry, slot, string.format("%.3f ", now) .. kept)
-- Longer than any call: it goes with the last installation that uses it.
redis.call("EXPIRE", registry, 172800)
return 1
