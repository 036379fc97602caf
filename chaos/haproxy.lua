-- Waits before a connection, a request or an answer is passed on; other traffic is not delayed.
core.register_action("pause", {"tcp-req", "http-req", "http-res"}, function(txn, milliseconds)
    core.msleep(tonumber(milliseconds))
end, 1)
