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

-- The epoch and the top offset of a stream. A stream without an epoch is new, or was lost: what is
-- left of it goes, and it begins again at 0 in the epoch NEW_EPOCH.
local function position(stream, meta, new_epoch, meta_ttl)
  local found = redis.call('HMGET', meta, 'epoch', 'offset')
  if found[1] then
    return found[1], tonumber(found[2])
  end
  redis.call('DEL', stream)
  redis.call('HSET', meta, 'epoch', new_epoch, 'offset', 0)
  redis.call('EXPIRE', meta, meta_ttl)
  return new_epoch, 0
end

-- publish(stream, meta, idempotency; CHANNEL, RECORD, SIZE, TTL, META_TTL, NEW_EPOCH, ONCE_TTL): give
-- RECORD the next offset of its stream, keep it there, and send it to the subscribers. With ONCE_TTL
-- above 0, a second publication under the same idempotency key within that many seconds is none: it
-- gets the position of the first. SIZE 0 is a channel without history: offset 0, nothing kept.
-- Returns {offset, epoch}.
local function publish(keys, args)
  local channel, record, size, once_ttl = args[1], args[2], tonumber(args[3]), tonumber(args[7])
  if once_ttl > 0 then
    local first = redis.call('GET', keys[3])
    if first then
      local offset, epoch = first:match('^(%d+) (.*)$')
      return { tonumber(offset), epoch }
    end
  end
  local epoch, offset = '', 0
  if size > 0 then
    epoch = position(keys[1], keys[2], args[6], args[5])
    offset = redis.call('HINCRBY', keys[2], 'offset', 1)
    redis.call('XADD', keys[1], 'MAXLEN', size, offset .. '-0', 'r', record)
    redis.call('EXPIRE', keys[1], args[4])
    redis.call('EXPIRE', keys[2], args[5])
  end
  redis.call('PUBLISH', channel, 'p ' .. offset .. ' ' .. epoch .. '\n' .. record)
  if once_ttl > 0 then
    redis.call('SET', keys[3], offset .. ' ' .. epoch, 'EX', once_ttl)
  end
  return { offset, epoch }
end

-- history(stream, meta; SINCE, LIMIT, REVERSE, META_TTL, NEW_EPOCH): at most LIMIT records after offset
-- SINCE, or in reverse before it (0: from the newest). Returns {offset, epoch, {offset, record, ...}},
-- the first two being the stream's top.
local function history(keys, args)
  local since, limit = tonumber(args[1]), tonumber(args[2])
  local epoch, top = position(keys[1], keys[2], args[5], args[4])
  local flat = {}
  if limit > 0 then
    local entries
    if args[3] == '1' then
      local newest = since > 0 and (since - 1) .. '-0' or '+'
      entries = since == 1 and {} or redis.call('XREVRANGE', keys[1], newest, '-', 'COUNT', limit)
    else
      entries = redis.call('XRANGE', keys[1], (since + 1) .. '-0', '+', 'COUNT', limit)
    end
    for _, entry in ipairs(entries) do
      flat[#flat + 1] = tonumber(entry[1]:match('^%d+'))
      flat[#flat + 1] = entry[2][2]
    end
  end
  return { top, epoch, flat }
end

-- join(presence, expiry; CLIENT, INFO, TTL, META_TTL): CLIENT is in the channel for TTL seconds.
local function join(keys, args)
  redis.call('HSET', keys[1], args[1], args[2])
  redis.call('ZADD', keys[2], string.format('%.3f', now() + tonumber(args[3])), args[1])
  redis.call('EXPIRE', keys[1], args[3])
  redis.call('EXPIRE', keys[2], args[3])
  return 1
end

-- leave(presence, expiry; CLIENT): CLIENT is not in the channel any more.
local function leave(keys, args)
  redis.call('ZREM', keys[2], args[1])
  return redis.call('HDEL', keys[1], args[1])
end

-- members(presence, expiry): who is in the channel: {client, info, ...}; the expired are cleared away.
local function members(keys)
  local limit = string.format('%.3f', now())
  for _, client in ipairs(redis.call('ZRANGEBYSCORE', keys[2], '-inf', limit)) do
    redis.call('HDEL', keys[1], client)
    redis.call('ZREM', keys[2], client)
  end
  return redis.call('HGETALL', keys[1])
end

redis.register_function('wsfleet_publish_@D@', publish)
redis.register_function('wsfleet_history_@D@', history)
redis.register_function('wsfleet_join_@D@', join)
redis.register_function('wsfleet_leave_@D@', leave)
redis.register_function('wsfleet_members_@D@', members)
redis.register_function('wsfleet_claim_@D@', claim)
redis.register_function('wsfleet_release_@D@', release)
redis.register_function('wsfleet_heartbeat_@D@', heartbeat)
redis.register_function('wsfleet_silence_@D@', silence)
redis.register_function('wsfleet_forget_@D@', forget)
