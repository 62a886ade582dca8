package redisstore

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authsvc/authsvc/internal/limit"
)

var _ limit.Shared = (*Store)(nil)

// settle is one count: KEYS[1], by the server's own clock, in microseconds. It answers with the key and the number of the call, so that
// an answer to something else is known as such. A counter is "width:newest slice:failures,failures,…" (the newest slice first) of a
// rule with a window, and "failures:last" of one without. Of a clock that went back nobody waits longer than the rule says,
// and nothing is forgotten.
const settle = `
local key, call, outcome = KEYS[1], ARGV[1], ARGV[2]
local free, width, most, keep = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local parts = 10
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local held = redis.call('GET', key)
local wait, changed = 0, false

if width > 0 then
  local newest, slices, failures = math.floor(now / width), {}, 0
  for age = 0, parts do slices[age] = 0 end
  if held then
    local was, slice, list = string.match(held, '^(%d+):(%d+):(.*)$')
    if was and tonumber(was) == width then
      local age = newest - tonumber(slice)
      if age < 0 then age, changed = 0, true end
      for n in string.gmatch(list, '%d+') do
        if age <= parts then
          slices[age] = tonumber(n)
          failures = failures + slices[age]
        end
        age = age + 1
      end
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
  elseif outcome == 'failed' then
    slices[0], changed = slices[0] + 1, true
  end
  if changed then
    redis.call('SET', key, string.format('%.0f:%.0f:', width, newest) .. table.concat(slices, ',', 0, parts), 'PX', keep)
  end
else
  local failures, last = 0, 0
  if held then
    local n, at = string.match(held, '^(%d+):(%d+)$')
    if n then failures, last = tonumber(n), tonumber(at) end
  end
  if last > now then last, changed = now, true end
  if failures >= free then
    local beyond, delay = failures - free, most
    if beyond < 16 then delay = math.min(most, 1000000 * 2 ^ beyond) end
    wait = math.max(0, last + delay - now)
  end
  if wait == 0 and outcome == 'failed' then
    failures, last, changed = failures + 1, now, true
  elseif wait == 0 and outcome == 'succeeded' and held then
    failures, changed = 0, false
    redis.call('DEL', key)
  end
  if changed then
    redis.call('SET', key, string.format('%.0f:%.0f', failures, last), 'PX', keep)
  end
end
return {key, call, math.ceil(wait)}
`

// count is one run of the script.
type count struct {
	key  string // in Redis
	args []any
}

// Settle implements limit.Shared, in one round trip; in another one where Redis has forgotten the script.
func (s *Store) Settle(ctx context.Context, counts []limit.Count, o limit.Outcome) (waits []time.Duration, err error) {
	if len(counts) == 0 {
		return nil, nil
	}
	calls := make([]count, len(counts))
	for i, c := range counts {
		calls[i] = newCount(s.name(c.Key), c.Rule, o)
	}
	err = s.call(ctx, func(ctx context.Context) (key string, err error) {
		waits, key, err = s.settle(ctx, calls)
		return key, err
	})
	return waits, err
}

// name is a key in Redis: a hash stands for it, so that names and addresses do not stand there in clear.
func (s *Store) name(key string) string {
	sum := sha256.Sum256([]byte(key))
	return s.prefix + "limit:" + base64.RawURLEncoding.EncodeToString(sum[:])
}

func newCount(key string, r limit.Rule, o limit.Outcome) count {
	outcome, keep := "released", limit.Forget
	switch o {
	case limit.Released:
	case limit.Failed:
		outcome = "failed"
	case limit.Succeeded:
		outcome = "succeeded"
	}
	width := r.Window / 10
	if r.Window > 0 {
		keep = r.Window + 2*width
	}
	return count{key: key, args: []any{outcome, r.Free, width.Microseconds(), r.MaxDelay.Microseconds(), keep.Milliseconds()}}
}

// settle runs the script for each count, in one pipeline, and gives the key whose run failed.
func (s *Store) settle(ctx context.Context, counts []count) (waits []time.Duration, failed string, err error) {
	waits = make([]time.Duration, len(counts))
	left := make([]int, len(counts))
	for i := range counts {
		left[i] = i
	}
	for _, run := range []func(context.Context, redis.Scripter, []string, ...any) *redis.Cmd{s.script.EvalSha, s.script.Eval} {
		pipe := s.client.Pipeline()
		calls, cmds := make([]string, len(left)), make([]*redis.Cmd, len(left))
		for n, i := range left {
			calls[n] = strconv.FormatUint(s.serial.Add(1), 36)
			cmds[n] = run(ctx, pipe, []string{counts[i].key}, append([]any{calls[n]}, counts[i].args...)...)
		}
		_, _ = pipe.Exec(ctx) // each command has its own error
		var again []int
		for n, i := range left {
			if redis.HasErrorPrefix(cmds[n].Err(), "NOSCRIPT") {
				again = append(again, i)
				continue
			}
			if waits[i], err = answer(cmds[n], counts[i].key, calls[n]); err != nil {
				return nil, counts[i].key, err
			}
		}
		if left = again; len(left) == 0 {
			return waits, "", nil
		}
	}
	return nil, counts[left[0]].key, errors.New("redisstore: Redis forgets the script at once")
}

// answer reads what the script said, which must be to this call.
func answer(cmd *redis.Cmd, key, call string) (time.Duration, error) {
	parts, err := cmd.Slice()
	if err != nil {
		return 0, err
	}
	if len(parts) == 3 && parts[0] == key && parts[1] == call {
		if wait, ok := parts[2].(int64); ok && wait >= 0 {
			return time.Duration(wait) * time.Microsecond, nil
		}
	}
	return 0, errors.New("redisstore: Redis answered something else than it was asked")
}

// probe counts where the key stands, in a Cluster in its slot, and takes that back: a server that is read-only or full
// answers reads. An empty key stands for any.
func (s *Store) probe(ctx context.Context, key string) error {
	name := fmt.Sprintf("%sprobe:{%s}", s.prefix, key)
	rule := limit.Rule{Free: 1000, MaxDelay: time.Millisecond}
	_, _, err := s.settle(ctx, []count{newCount(name, rule, limit.Failed), newCount(name, rule, limit.Succeeded)})
	return err
}
