package app

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// notify tells a service manager what the server does, where one listens (systemd's sd_notify(3), Type=notify): one datagram to
// the socket that the environment names, "READY=1" or "STOPPING=1". A name that begins with @ is an abstract one.
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("NOTIFY_SOCKET: %w", err)
	}
	_, err = conn.Write([]byte(state))
	return errors.Join(err, conn.Close())
}

// tell does so, and complains in the log: a manager that does not hear it gives up the server by itself.
func (a *App) tell(state string) {
	if err := notify(state); err != nil {
		a.log.Warn("the service manager was not told", "state", state, "error", err)
	}
}
