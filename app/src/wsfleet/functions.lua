-- Redis Functions of a node (Redis 7.0 and newer). The node loads this file under a name that ends
-- in its digest, so that old and new nodes run side by side: @D@ stands for the digest.

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000
end

-- claim(connection:ID, state:ID; NODE, DEAD): the name ID belongs to NODE, if it is free, NODE's
-- already, or held by the node DEAD. Returns the holder: NODE if the claim holds.
local function claim(keys, args)
  local holder = redis.call('GET', keys[1])
  if holder and holder ~= args[1] and holder ~= args[2] then
    return holder
  end
  redis.call('SET', keys[1], args[1])
  redis.call('PERSIST', keys[2])
  return args[1]
end

-- release(connection:ID, state:ID; NODE, WINDOW): NODE lets the name ID go; the state stays for
-- WINDOW seconds. Returns 1, or 0 if the name is another node's by now.
local function release(keys, args)
  if redis.call('GET', keys[1]) ~= args[1] then
    return 0
  end
  redis.call('DEL', keys[1])
  redis.call('EXPIRE', keys[2], args[2])
  return 1
end

-- heartbeat(wsfleet:nodes, wsfleet:node:NAME; NAME, DEAD_AFTER, field, value, ...): a sign of life.
-- Returns {known, stale}: whether NAME was in the registry already, and the names that went silent.
local function heartbeat(keys, args)
  local name, dead_after, time = args[1], tonumber(args[2]), now()
  local known = redis.call('ZSCORE', keys[1], name) and 1 or 0
  redis.call('ZADD', keys[1], string.format('%.3f', time), name)
  redis.call('HSET', keys[2], unpack(args, 3))
  redis.call('EXPIRE', keys[2], math.ceil(dead_after))
  local limit = string.format('(%.3f', time - dead_after)
  return {
    known,
    redis.call('ZRANGEBYSCORE', keys[1], '-inf', limit),
  }
end

-- silence(wsfleet:nodes; NAME): milliseconds since NAME's last sign of life; -1 if it is unknown.
local function silence(keys, args)
  local seen = redis.call('ZSCORE', keys[1], args[1])
  return seen and math.floor((now() - tonumber(seen)) * 1000) or -1
end

-- forget(wsfleet:nodes; NAME, DEAD_AFTER): take NAME out of the registry if it is still without a
-- sign of life. Returns 1 if so.
local function forget(keys, args)
  local seen = redis.call('ZSCORE', keys[1], args[1])
  if not seen or tonumber(seen) >= now() - tonumber(args[2]) then
    return 0
  end
  return redis.call('ZREM', keys[1], args[1])
end

redis.register_function('wsfleet_claim_@D@', claim)
redis.register_function('wsfleet_release_@D@', release)
redis.register_function('wsfleet_heartbeat_@D@', heartbeat)
redis.register_function('wsfleet_silence_@D@', silence)
redis.register_function('wsfleet_forget_@D@', forget)
