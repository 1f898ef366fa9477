-- Another generator's latencies, to check those of benchmarks/serve.py by:
--
--   PAUSE=64 wrk -t1 -c64 -d10s -s benchmarks/pauses.lua http://127.0.0.1:8000/v1/recommend
--
-- After each answer a connection pauses, for PAUSE milliseconds on average, so that 64 of
-- them send some 64,000 / PAUSE requests a second.

wrk.method = "POST"
wrk.body = '{"session": ["3", "17", "3", "240"]}'
local pause = tonumber(os.getenv("PAUSE") or 64)

function delay()
  return math.random(0, 2 * pause)
end

function done(summary, latency, requests)
  print(string.format(
    "%.0f/s: p50 %.1f ms, p90 %.1f ms, p99 %.1f ms, %d other answers than 200",
    summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3,
    summary.errors.status
  ))
end
