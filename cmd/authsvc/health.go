package main

import (
	"flag"
	"io"

	"github.com/authsvc/authsvc/internal/app"
)

func healthCommands() []command {
	return []command{{group: "health", about: "ask the running server at ops.address whether it is ready; for the health checks of containers", storeless: true, homeless: true,
		setup: func(f *flag.FlagSet) action {
			live := f.Bool("live", false, "ask only whether it answers, whatever it waits for")
			return func(r *call) error {
				cfg, err := app.LoadConfig(r.store)
				if err != nil {
					return err
				}
				if err := app.Probe(r.ctx, cfg, *live); err != nil {
					return err
				}
				state := "ready"
				if *live {
					state = "alive"
				}
				return r.print(map[string]string{"status": state}, func(w io.Writer) error {
					_, err := io.WriteString(w, state+"\n")
					return err
				})
			}
		}}}
}
