package limit_test

import (
	"testing"

	"github.com/authsvc/authsvc/internal/limit"
	"github.com/authsvc/authsvc/internal/limit/limittest"
)

func TestMemoryIsWhatReplicasOfOneProcessShare(t *testing.T) {
	t.Parallel()
	limittest.Run(t, func(t *testing.T) [2]limit.Shared {
		t.Helper()
		m, err := limit.NewMemory(limit.MemoryOptions{Room: 1000})
		if err != nil {
			t.Fatal(err)
		}
		return [2]limit.Shared{m, m}
	})
}
