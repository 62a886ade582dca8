package machine_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authsvc/authsvc/internal/store/machine"
)

func TestAPortIsFreeAndNotOneOfOutgoingConnections(t *testing.T) {
	t.Parallel()
	for range 10 {
		port, err := machine.FreePort()
		if err != nil || port < 1024 || port >= 32768 {
			t.Fatalf("port %d, %v", port, err)
		}
		l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
}

func TestAPulseCountsNoMoreThanWhatPasses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var p machine.Pulse
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.Run(ctx) }()
		<-time.After(time.Second + time.Millisecond)
		stop()
		if err := <-ended; err != nil || p.Now() != time.Second {
			t.Errorf("after a second it is at %v, and ends with %v", p.Now(), err)
		}
	})
}
