-- What both scripts about slots know: the registry's entry of a slot is `<when it was taken> [organization, run, channels]`.
--
-- KEYS[1] is the registry. ARGV[1] is the slot, ARGV[2] the organization, ARGV[3] the run or an empty text.

local registry, slot, organization, run = KEYS[1], ARGV[1], ARGV[2], ARGV[3]

-- Removes the note of a channel, if it is of this run.
local function forget_channel(key, of)
    if redis.call("GET", key) == of then redis.call("DEL", key) end
end

-- Returns the run and the channels of this slot's entry; nothing if it has none of this release's, with a run.
local function registered()
    local entry = redis.call("HGET", registry, slot)
    local is_read, kept = pcall(cjson.decode, entry and string.match(entry, " (.*)$") or "")
    if is_read and type(kept) == "table" and type(kept[2]) == "number" then
        return string.format("%d", kept[2]), kept[3]
    end
end

-- Removes what was written for another run: of a call that was about to be written, and was not, or was again. Of this
-- run only the notes of its channels, if all of the call is to go.
local function forget_written(is_all)
    local written, channels = registered()
    if not written or (written == run and not is_all) then return end
    local binding = "workflow_slot_mapping:" .. written
    if written ~= run and redis.call("HGET", binding, "slot_id") == slot then redis.call("DEL", binding) end
    for _, channel in ipairs(channels) do forget_channel("ari:channel:" .. channel, written) end
end
