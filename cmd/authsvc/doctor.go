package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/authsvc/authsvc/internal/app"
)

func doctorCommands() []command {
	return []command{{group: "doctor", about: "look at an installation and say what is wrong and what to do; it changes nothing, and fails where there is a problem", setup: none(doctor), storeless: true}}
}

func doctor(r *call) error {
	ctx, stop := r.interruptible()
	defer stop()
	found, err := app.Examine(ctx, r.store)
	if err != nil {
		return err
	}
	problems := 0
	for _, f := range found {
		if f.Level == app.LevelProblem {
			problems++
		}
	}
	if err := r.print(found, func(w io.Writer) error {
		for _, f := range found {
			fmt.Fprintln(w, strings.Join(cells([]string{string(f.Level), f.Check, f.Found}), "\t"))
			if f.Do != "" {
				fmt.Fprintf(w, "\t\t→ %s\n", cells([]string{f.Do})[0])
			}
			if f.See != "" {
				fmt.Fprintf(w, "\t\t  %s\n", f.See)
			}
		}
		return nil // what w could not write, its Flush says
	}); err != nil {
		return err
	}
	switch problems {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("there is a problem")
	}
	return fmt.Errorf("there are %d problems", problems)
}
