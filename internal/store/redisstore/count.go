package redisstore

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"math"
	"strconv"
	"time"

	"github.com/authsvc/authsvc/internal/limit"
)

var _ limit.Shared = (*Store)(nil)

// settle judges and counts a sign-in in one step, by the server's own clock, in microseconds: KEYS are the counters, and each has four
// numbers. It answers with the number of the call and, for each key, its name and its wait, so that an answer to something else is known
// as such. A counter is "width:newest slice:failures,failures,…" (the newest slice first) of a rule with a window, and "failures:last" of
// one without. Where one key refuses, no key counts. Of a clock that went back nobody waits longer than the rule says, and nothing is forgotten.
// What somebody else has put under the name of a counter counts nothing and makes way.
const settle = `
local outcome, parts = ARGV[2], 10
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local answer, counters, refused = {ARGV[1]}, {}, false

for i, key in ipairs(KEYS) do
  local free, width, most = tonumber(ARGV[4 * i - 1]), tonumber(ARGV[4 * i]), tonumber(ARGV[4 * i + 1])
  local held = redis.pcall('GET', key)
  if type(held) == 'table' then
    if not string.find(held.err, 'WRONGTYPE', 1, true) then return held end
    redis.call('DEL', key)
    held = false
  end
  local c = {key = key, width = width, keep = ARGV[4 * i + 2], held = held, mended = false}
  local wait = 0
  if width > 0 then
    local newest, slices, failures = math.floor(now / width), {}, 0
    for age = 0, parts do slices[age] = 0 end
    local was, slice, list = string.match(held or '', '^(%d+):(%d+):(.*)$')
    if was and tonumber(was) == width then
      local age = newest - tonumber(slice)
      if age < 0 then age, c.mended = 0, true end
      for n in string.gmatch(list, '%d+') do
        if age <= parts then
          slices[age] = tonumber(n)
          failures = failures + slices[age]
        end
        age = age + 1
      end
    end
    if failures >= free then
      wait = width
      for age = parts, 0, -1 do
        if slices[age] > 0 then
          wait = math.max(1, (newest - age + parts + 1) * width - now)
          break
        end
      end
    end
    c.newest, c.slices = newest, slices
  else
    local n, at = string.match(held or '', '^(%d+):(%d+)$')
    c.failures, c.last = tonumber(n or 0), tonumber(at or 0)
    if c.last > now then c.last, c.mended = now, true end
    if c.failures >= free then
      local beyond, delay = c.failures - free, most
      if beyond < 16 then delay = math.min(most, 1000000 * 2 ^ beyond) end
      wait = math.max(0, c.last + delay - now)
    end
  end
  refused = refused or wait > 0
  counters[i], answer[2 * i], answer[2 * i + 1] = c, key, math.ceil(wait)
end

local failed = not refused and outcome == 'failed'
for _, c in ipairs(counters) do
  if c.width > 0 then
    if failed then c.slices[0] = c.slices[0] + 1 end
    if failed or c.mended then
      redis.call('SET', c.key, string.format('%.0f:%.0f:', c.width, c.newest) .. table.concat(c.slices, ',', 0, parts), 'PX', c.keep)
    end
  elseif not refused and outcome == 'succeeded' then
    if c.held then redis.call('DEL', c.key) end
  else
    if failed then c.failures, c.last = c.failures + 1, now end
    if failed or c.mended then
      redis.call('SET', c.key, string.format('%.0f:%.0f', c.failures, c.last), 'PX', c.keep)
    end
  end
end
return answer
`

// Settle implements limit.Shared, in one round trip; in another one where Redis has forgotten the script.
func (s *Store) Settle(ctx context.Context, counts []limit.Count, o limit.Outcome) (waits []time.Duration, err error) {
	if len(counts) == 0 {
		return nil, nil
	}
	err = s.call(ctx, func(ctx context.Context) (err error) {
		waits, err = s.settle(ctx, counts, o)
		return err
	})
	return waits, err
}

// name is a key in Redis: a hash stands for it, so that names and addresses do not stand there in clear.
func (s *Store) name(key string) string {
	sum := sha256.Sum256([]byte(key))
	return s.prefix + "limit:" + base64.RawURLEncoding.EncodeToString(sum[:])
}

// settle runs the script.
func (s *Store) settle(ctx context.Context, counts []limit.Count, o limit.Outcome) ([]time.Duration, error) {
	call, outcome := strconv.FormatUint(s.serial.Add(1), 36), "released"
	switch o {
	case limit.Released:
	case limit.Failed:
		outcome = "failed"
	case limit.Succeeded:
		outcome = "succeeded"
	}
	keys, args := make([]string, len(counts)), []any{call, outcome}
	for i, c := range counts {
		width, keep := c.Rule.Window/10, limit.Forget
		if c.Rule.Window > 0 {
			keep = c.Rule.Window + 2*width
		}
		keys[i] = s.name(c.Key)
		args = append(args, c.Rule.Free, width.Microseconds(), c.Rule.MaxDelay.Microseconds(), keep.Milliseconds())
	}
	said, err := s.script.Run(ctx, s.client, keys, args...).Slice()
	if err != nil {
		return nil, err
	}
	waits, err := read(said, keys, call)
	if err != nil {
		s.strange.Add(1) // this connection is one answer behind, or worse, and would stay so
	}
	return waits, err
}

// read takes the waits from what the script said, which must be to this call.
func read(said []any, keys []string, call string) ([]time.Duration, error) {
	other := errors.New("redisstore: Redis answered something else than it was asked")
	if len(said) != 1+2*len(keys) || said[0] != call {
		return nil, other
	}
	waits := make([]time.Duration, len(keys))
	for i, key := range keys {
		wait, ok := said[2*i+2].(int64)
		if said[2*i+1] != key || !ok || wait < 0 {
			return nil, other
		}
		waits[i] = time.Duration(min(wait, math.MaxInt64/1000)) * time.Microsecond
	}
	return waits, nil
}

// probe counts and takes that back: a server that is read-only or full answers reads. It stands where all the counters do.
func (s *Store) probe(ctx context.Context) error {
	count := []limit.Count{{Key: "probe", Rule: limit.Rule{Free: 1000, MaxDelay: time.Millisecond}}}
	_, err := s.settle(ctx, count, limit.Failed)
	if err == nil {
		_, err = s.settle(ctx, count, limit.Succeeded)
	}
	return err
}
