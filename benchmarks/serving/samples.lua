-- One POST per request, each with a seed of its own; prints the counts as one line of JSON.
-- Arguments: the first seed, the model's name, and how the seed is sent ("fields" or "list").
local seed, before, after

function init(args)
  seed = tonumber(args[1])
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  if args[3] == "list" then
    before, after = '{"seeds":[', ']}'
  else
    before, after = '{"model":"' .. args[2] .. '","count":1,"seed":', '}'
  end
end

function request()
  seed = seed + 1
  return wrk.format(nil, nil, nil, before .. string.format("%d", seed) .. after)
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"duration_us":%d,"bytes":%d,"non_2xx":%d,"connect":%d,"read":%d,"write":%d,"timeout":%d,'
      .. '"p50_us":%d,"p99_us":%d,"max_us":%d}\n',
    summary.requests, summary.duration, summary.bytes, e.status, e.connect, e.read, e.write, e.timeout,
    latency:percentile(50), latency:percentile(99), latency.max))
end
