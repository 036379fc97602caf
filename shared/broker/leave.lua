-- A member ends: what it still holds goes back, and its ear hears of it. ARGV: member, its queues.

for at = 2, #ARGV do
    redis.call("ZREM", key("queue", ARGV[at], "idle"), ARGV[1])
end
dismiss(ARGV[1])
redis.call("PUBLISH", key("wake", ARGV[1]), "")
