package app

import (
	"context"
	"os"
	"strings"

	"github.com/authsvc/authsvc/internal/config"
)

// Reload is how a running server is told to read its configuration again.
type Reload struct {
	// Signals asks for it, each time that something comes.
	Signals <-chan os.Signal
	// Load reads it, as at the start.
	Load func() (config.Config, error)
}

// reloading follows the signals until ctx ends. A configuration in which anything is wrong changes nothing. What may change while
// the server runs is applied at once; what may not is named, and goes on as it was.
func (a *App) reloading(ctx context.Context) error {
	running := a.cfg
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.reload.Signals:
		}
		next, err := a.reload.Load()
		if err == nil {
			err = CheckConfig(next)
		}
		if err != nil {
			a.log.Error("the configuration was read again and is refused; what held before holds", "error", err)
			a.meter.reloaded("refused")
			continue
		}
		running = a.apply(running, next)
	}
}

// apply takes of next what may change, and gives what holds then.
func (a *App) apply(running, next config.Config) config.Config {
	applied, fixed := []string{}, []string(nil)
	for _, setting := range config.Changed(running, next) {
		if setting == "log.level" || strings.HasPrefix(setting, "limits.") {
			applied = append(applied, setting)
		} else {
			fixed = append(fixed, setting)
		}
	}
	if err := a.thr.Set(next.Limits); err != nil { // CheckConfig has let it pass
		a.log.Error("the limits are refused", "error", err)
		a.meter.reloaded("refused")
		return running
	}
	running.Limits, running.Log.Level = next.Limits, next.Log.Level
	before := a.level.Level()
	setLevel(a.level, next.Log.Level)
	after := a.level.Level()
	defer a.level.Set(after) // what is said of the change itself is heard by the old level, too
	a.level.Set(min(before, after))
	a.log.Info("the configuration was read again", "applied", applied)
	if len(fixed) == 0 {
		a.meter.reloaded("ok")
		return running
	}
	a.log.Warn("needs a restart: "+strings.Join(fixed, ", "), "settings", fixed)
	a.meter.reloaded("restart_needed")
	return running
}
