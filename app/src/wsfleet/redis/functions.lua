-- Redis Functions of a node (Redis 7.0 and newer). The node loads this file under a name that ends
-- in its digest, so that old and new nodes run side by side: @D@ stands for the digest.

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000
end

-- claim(connection:ID; NODE, DEAD): the name ID belongs to NODE, if it is free, NODE's already, or
-- held by the node DEAD. Returns the holder: NODE if the claim holds.
local function claim(keys, args)
  local holder = redis.call('GET', keys[1])
  if holder and holder ~= args[1] and holder ~= args[2] then
    return holder
  end
  redis.call('SET', keys[1], args[1])
  return args[1]
end

-- release(connection:ID; NODE): NODE lets the name ID go. Returns 1, or 0 if the name is another
-- node's by now.
local function release(keys, args)
  if redis.call('GET', keys[1]) ~= args[1] then
    return 0
  end
  return redis.call('DEL', keys[1])
end

-- heartbeat(wsfleet:nodes; NAME, DEAD_AFTER): a sign of life. Returns {known, stale}: whether NAME
-- was in the registry already, and the names that went silent.
local function heartbeat(keys, args)
  local name, time = args[1], now()
  local known = redis.call('ZSCORE', keys[1], name) and 1 or 0
  redis.call('ZADD', keys[1], string.format('%.3f', time), name)
  local limit = string.format('(%.3f', time - tonumber(args[2]))
  return {
    known,
    redis.call('ZRANGEBYSCORE', keys[1], '-inf', limit),
  }
end

-- describe(wsfleet:node:NAME; TTL, FIELD, VALUE, ...): set fields of NAME, which last TTL seconds.
local function describe(keys, args)
  redis.call('HSET', keys[1], unpack(args, 2))
  return redis.call('EXPIRE', keys[1], args[1])
end

-- silence(wsfleet:nodes; NAME): milliseconds since NAME's last sign of life; -1 if it is unknown.
local function silence(keys, args)
  local seen = redis.call('ZSCORE', keys[1], args[1])
  return seen and math.max(0, math.floor((now() - tonumber(seen)) * 1000)) or -1
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

-- Which life of which server writes: another one after each restart and each failover.
local life
local function this_life()
  life = life
    or redis.call('INFO', 'server'):match('run_id:(%w+)')
      .. redis.call('INFO', 'replication'):match('master_replid:(%w+)')
  return life
end

-- Offsets that are left out after a restart or a failover. The server before may have given, and
-- sent, offsets that this one knows nothing of; given twice, the second would pass for a duplicate.
local LEAP = 1000000

-- Publications that may be held beyond the size of the history, so that none of a burst is trimmed
-- before it was sent.
local HELD = 1000

-- The state of a stream: its `epoch`, its top `offset`, the `life` that wrote last, and, where
-- publications are held until they are replicated, the offset up to which they were `sent`. It is
-- nil for a stream that was never written, or was lost.
local function known(meta)
  local found = redis.call('HMGET', meta, 'epoch', 'offset', 'life', 'sent')
  return found[1] and {
    epoch = found[1],
    offset = tonumber(found[2]),
    life = found[3],
    sent = tonumber(found[4]),
  }
end

-- The same before a write: a stream without a state begins at 0, and the entries of a lost stream
-- are deleted.
local function position(stream, meta, new_epoch, meta_ttl)
  local at = known(meta)
  if at then
    return at
  end
  redis.call('DEL', stream)
  redis.call('HSET', meta, 'epoch', new_epoch, 'offset', 0, 'life', this_life())
  redis.call('EXPIRE', meta, meta_ttl)
  return { epoch = new_epoch, offset = 0, life = this_life() }
end

-- Send one publication. `previous` is the offset before it in the stream.
local function send(channel, offset, previous, epoch, record)
  redis.call('SPUBLISH', channel, table.concat({ 'p', offset, previous, epoch }, ' ') .. '\n' .. record)
end

-- An entry of the stream: its offset, the one before it, its record.
local function entry_of(found)
  local offset, fields = tonumber(found[1]:match('^%d+')), found[2]
  return offset, tonumber(fields[4] or offset - 1), fields[2]
end

-- Send the held publications up to an offset.
local function send_held(stream, channel, at, offset)
  if at.sent < offset then
    local held = redis.call('XRANGE', stream, (at.sent + 1) .. '-0', offset .. '-0')
    for _, found in ipairs(held) do
      local number, previous, record = entry_of(found)
      send(channel, number, previous, at.epoch, record)
    end
  end
end

-- Whether version A is above B; both are decimal, and may be larger than Lua counts exactly.
local function is_above(a, b)
  return #a > #b or (#a == #b and a > b)
end

-- publish(stream, meta, idempotency; CHANNEL, RECORD, SIZE, TTL, META_TTL, NEW_EPOCH, ONCE_TTL, HOLD,
-- VERSION, VERSION_EPOCH):
-- give RECORD the next offset of its stream, keep it there, and send it to the subscribers, or, if
-- HOLD is 1, leave that to `confirm`. With ONCE_TTL above 0, a second publication under the same
-- idempotency key within that many seconds is not published: it gets the position of the first. SIZE 0 is a
-- channel without history: offset 0, nothing kept. A VERSION other than 0 that is not above that of the
-- last versioned publication is not published, unless VERSION_EPOCH is given and another one than then:
-- the stream's top is returned, held publications included, for `confirm`. Returns {offset, epoch}.
--
-- With HOLD, something is written also if nothing is published. The first publication may be on no
-- replica yet, and WAIT waits only for the writes of its own connection: a replica that has this write
-- has the first publication, too.
local function publish(keys, args)
  local channel, record, size, once_ttl = args[1], args[2], tonumber(args[3]), tonumber(args[7])
  local hold = args[8] == '1'
  if once_ttl > 0 then
    local first = redis.call('GET', keys[3])
    if first then
      local offset, epoch = first:match('^(%d+) (.*)$')
      if hold then
        redis.call('EXPIRE', keys[2], args[5])
      end
      return { tonumber(offset), epoch }
    end
  end
  local offset, epoch = 0, ''
  if size > 0 then
    local at = position(keys[1], keys[2], args[6], args[5])
    if at.sent and not hold then -- the channel held publications before, and does not now
      send_held(keys[1], channel, at, at.offset)
      redis.call('HDEL', keys[2], 'sent')
    end
    local version, version_epoch = args[9], args[10]
    if version ~= '0' then
      local last = redis.call('HMGET', keys[2], 'version', 'version_epoch')
      local same = version_epoch == '' or version_epoch == last[2]
      if last[1] and same and not is_above(version, last[1]) then
        if hold then
          redis.call('EXPIRE', keys[2], args[5])
        end
        return { at.offset, at.epoch }
      end
      redis.call('HSET', keys[2], 'version', version, 'version_epoch', version_epoch)
    end
    local previous = at.offset
    local length = hold and size + HELD or size
    offset, epoch = previous + 1, at.epoch
    if at.life == this_life() then
      redis.call('XADD', keys[1], 'MAXLEN', length, offset .. '-0', 'r', record)
      redis.call('HSET', keys[2], 'offset', offset)
    else
      offset = previous + LEAP
      redis.call('XADD', keys[1], 'MAXLEN', length, offset .. '-0', 'r', record, 'p', previous)
      redis.call('HSET', keys[2], 'offset', offset, 'life', this_life())
    end
    redis.call('EXPIRE', keys[1], args[4])
    redis.call('EXPIRE', keys[2], args[5])
    if hold then
      if not at.sent then
        redis.call('HSET', keys[2], 'sent', previous)
      end
    else
      send(channel, offset, previous, epoch, record)
    end
  else
    send(channel, 0, 0, '', record)
  end
  if once_ttl > 0 then
    redis.call('SET', keys[3], offset .. ' ' .. epoch, 'EX', once_ttl)
  end
  return { offset, epoch }
end

-- confirm(stream, meta; CHANNEL, OFFSET, EPOCH, SIZE): everything up to OFFSET is on a replica: send
-- the held publications up to it, in order. Returns 1, or 0 if the stream has another epoch by now.
local function confirm(keys, args)
  local offset = tonumber(args[2])
  local found = redis.call('HMGET', keys[2], 'epoch', 'sent', 'offset')
  if found[1] ~= args[3] then
    return 0
  end
  local sent = tonumber(found[2])
  if sent and sent < offset then
    send_held(keys[1], args[1], { epoch = found[1], sent = sent }, offset)
    redis.call('HSET', keys[2], 'sent', offset)
    redis.call('XTRIM', keys[1], 'MAXLEN', tonumber(args[4]) + tonumber(found[3]) - offset)
  end
  return 1
end

-- Entries that are read at a time while their sizes are added up.
local PORTION = 16

-- history(stream, meta; SINCE, LIMIT, REVERSE, MAX_SIZE): at most LIMIT records
-- after offset SINCE, or in reverse before it (0: from the newest), and at most MAX_SIZE bytes of them,
-- but never less than one record; held publications are left out. Returns
-- {offset, epoch, {offset, previous, record, ...}, cut}: the first two are the stream's top, and cut is
-- 1 where MAX_SIZE left out records. A stream without a state has an empty epoch: a read writes
-- nothing, because requests for random names would fill Redis.
local function history(keys, args)
  local since, left, reverse = tonumber(args[1]), tonumber(args[2]), args[3] == '1'
  local at = known(keys[2]) or { epoch = '', offset = 0 }
  local top = at.sent or at.offset
  local first, last = since + 1, top
  if reverse then
    first, last = 1, since > 0 and math.min(since - 1, top) or top
  end
  local flat, room, cut = {}, tonumber(args[4]), 0
  while left > 0 and first <= last and cut == 0 do
    local count = math.min(left, PORTION)
    local entries = reverse
        and redis.call('XREVRANGE', keys[1], last .. '-0', first .. '-0', 'COUNT', count)
      or redis.call('XRANGE', keys[1], first .. '-0', last .. '-0', 'COUNT', count)
    for _, found in ipairs(entries) do
      local offset, previous, record = entry_of(found)
      room = room - #record
      if room < 0 and #flat > 0 then
        cut = 1
        break
      end
      flat[#flat + 1] = offset
      flat[#flat + 1] = previous
      flat[#flat + 1] = record
      if reverse then
        last = offset - 1
      else
        first = offset + 1
      end
    end
    left = #entries < count and 0 or left - count
  end
  return { top, at.epoch, flat, cut }
end

-- begin(stream, meta; NEW_EPOCH, TTL): give a stream that nobody has published to an epoch, so that
-- a subscriber has a position in it; it is remembered for TTL seconds more. Returns 1, or 0 if there
-- are publications.
local function begin(keys, args)
  if position(keys[1], keys[2], args[1], args[2]).offset > 0 then
    return 0
  end
  return redis.call('EXPIRE', keys[2], args[2])
end

-- Members that are cleared away when one joins, at the most.
local CLEARED = 100

-- join(presence, expiry; CLIENT, INFO, TTL, META_TTL): CLIENT is in the channel for TTL seconds. The
-- expired are cleared away.
local function join(keys, args)
  local limit = string.format('%.3f', now())
  local gone = redis.call('ZRANGEBYSCORE', keys[2], '-inf', limit, 'LIMIT', 0, CLEARED)
  if #gone > 0 then
    redis.call('HDEL', keys[1], unpack(gone))
    redis.call('ZREM', keys[2], unpack(gone))
  end
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

-- members(presence, expiry; MAX_SIZE): return the members of the channel, {client, info, ...}, without
-- the expired. Returns nil if they have more than MAX_SIZE bytes; 0 is no limit.
local function members(keys, args)
  local limit = string.format('%.3f', now())
  local expired = {}
  for _, client in ipairs(redis.call('ZRANGEBYSCORE', keys[2], '-inf', limit)) do
    expired[client] = true
  end
  local found, flat, room = redis.call('HGETALL', keys[1]), {}, tonumber(args[1])
  for i = 1, #found, 2 do
    if not expired[found[i]] then
      flat[#flat + 1] = found[i]
      flat[#flat + 1] = found[i + 1]
    end
  end
  if room > 0 then
    for _, text in ipairs(flat) do
      room = room - #text
    end
    if room < 0 then
      return nil
    end
  end
  return flat
end

-- Milliseconds for which the token of a lease outlives its last holder.
local LEASE_KEPT = 86400000

-- The least difference between a fencing token and the one before it.
local TOKEN_STEP = 1000000

-- lease_acquire(wsfleet:lease:NAME; HOLDER, TTL): HOLDER has the lease for TTL milliseconds from now
-- on, if it is free or HOLDER's already. Returns {token, wanted}: its fencing token, or 0 if another
-- has the lease; and 1 if others have asked for it in vain since it was acquired or last renewed. A
-- token is the time in microseconds, and TOKEN_STEP above the token before it: tokens ascend even
-- after the hash has expired, or was lost in a failover, as far as the clocks of the servers agree.
local function lease_acquire(keys, args)
  local time, ttl = now(), tonumber(args[2])
  local found = redis.call('HMGET', keys[1], 'holder', 'token', 'until')
  local token = found[2]
  local held = found[1] and tonumber(found[3]) > time
  if held and found[1] ~= args[1] then
    redis.call('HSET', keys[1], 'wanted', '1')
    return { 0, 0 }
  end
  if not held then
    local lowest = tonumber(token or 0) + TOKEN_STEP
    token = string.format('%.0f', math.max(math.floor(time * 1000000), lowest))
  end
  local expiry = string.format('%.6f', time + ttl / 1000)
  local wanted = redis.call('HDEL', keys[1], 'wanted')
  redis.call('HSET', keys[1], 'holder', args[1], 'token', token, 'until', expiry)
  redis.call('PEXPIRE', keys[1], ttl + LEASE_KEPT)
  return { tonumber(token), held and wanted or 0 }
end

-- lease_release(wsfleet:lease:NAME; HOLDER): HOLDER gives the lease back. Returns 1, or 0 if it has
-- not got it.
local function lease_release(keys, args)
  if redis.call('HGET', keys[1], 'holder') ~= args[1] then
    return 0
  end
  return redis.call('HDEL', keys[1], 'holder')
end

-- session_save(wsfleet:session:NAME; MAX_SIZE, TTL, KEY, VALUE, ...): set these keys of a session, remove
-- those whose VALUE is empty, and let it expire after TTL seconds. Returns the bytes of all its keys and
-- values; if these would be more than MAX_SIZE, nothing is changed.
local function session_save(keys, args)
  local session, found, size = {}, redis.call('HGETALL', keys[1]), 0
  for i = 1, #found, 2 do
    session[found[i]] = found[i + 1]
  end
  for i = 3, #args, 2 do
    session[args[i]] = args[i + 1]
  end
  for key, value in pairs(session) do
    size = value == '' and size or size + #key + #value
  end
  if size > tonumber(args[1]) then
    return size
  end
  for i = 3, #args, 2 do
    if args[i + 1] == '' then
      redis.call('HDEL', keys[1], args[i])
    else
      redis.call('HSET', keys[1], args[i], args[i + 1])
    end
  end
  redis.call('EXPIRE', keys[1], args[2])
  return size
end

redis.register_function('wsfleet_publish_@D@', publish)
redis.register_function('wsfleet_begin_@D@', begin)
redis.register_function('wsfleet_join_@D@', join)
redis.register_function('wsfleet_claim_@D@', claim)
redis.register_function('wsfleet_session_save_@D@', session_save)

-- Functions that only read, or add next to nothing, also run in a Redis whose memory is full: clients
-- stay, leaving clients make room, and histories can be read. The functions that only read are not
-- marked `no-writes`, because a primary that has become a replica would answer them with old data.
local function also_when_full(name, callback)
  redis.register_function({
    function_name = 'wsfleet_' .. name .. '_@D@',
    callback = callback,
    flags = { 'allow-oom' },
  })
end
also_when_full('confirm', confirm)
also_when_full('history', history)
also_when_full('leave', leave)
also_when_full('members', members)
also_when_full('release', release)
also_when_full('lease_acquire', lease_acquire)
also_when_full('lease_release', lease_release)
also_when_full('heartbeat', heartbeat)
also_when_full('describe', describe)
also_when_full('silence', silence)
also_when_full('forget', forget)
