-- A filter for HAProxy in TCP mode: logs in to Redis for clients that do not.
-- Usage: filter lua.redis-login USER PASSWORD
-- It sends AUTH before the client's first command, and takes Redis's answer, +OK, out. A client may log in by itself
-- as well; what Redis says to a wrong password reaches the client as the answer to its first command.
local Login = { id = "redis-login" }
local OK = "+OK\r\n"

function Login:new()
    return setmetatable({ begun = false }, { __index = self })
end

function Login:start_analyze(txn, channel)
    filter.register_data_filter(self, channel)
end

function Login:tcp_payload(txn, channel)
    if channel:is_resp() then
        local answer = channel:data(0, #OK) or ""
        if #answer < #OK and OK:sub(1, #answer) == answer then
            return filter.WAIT
        end
        if answer == OK then
            channel:remove(0, #OK)
        end
    elseif not self.begun then
        self.begun = true
        channel:insert(self.command, 0)
    end
    filter.unregister_data_filter(self, channel)
end

core.register_filter("redis-login", Login, function(login, arguments)
    login.command = "AUTH " .. arguments[1] .. " " .. arguments[2] .. "\r\n"
    return login
end)
