-- Places a session. KEYS[1]: its hash. ARGV: time to live in ms, gateway, least epoch,
-- then the addresses of the verifiers that may take it, best first.
-- Returns the address that takes it and the new epoch, as decimal text.
local record = redis.call('HMGET', KEYS[1], 'verifier', 'epoch')
local verifier = ARGV[4]
for i = 4, #ARGV do
  if ARGV[i] == record[1] then verifier = record[1] end
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local epoch = string.format('%.0f',
  math.max(tonumber(record[2] or '0') + 1, now, tonumber(ARGV[3])))
redis.call('HSET', KEYS[1], 'verifier', verifier, 'epoch', epoch, 'gateway', ARGV[2],
  'updated', string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return {verifier, epoch}
