package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/authsvc/authsvc/internal/app"
)

func watcherCommands() []command {
	return []command{{group: "watchers", about: "list who follows the trust feed of the running server, the oldest first", setup: none(watchersList), storeless: true}}
}

func watchersList(r *call) error {
	all, err := app.Watchers(r.ctx, r.store)
	if err != nil {
		return err
	}
	var rows [][]string
	for _, w := range all {
		position := ""
		if w.Position != nil {
			position = strconv.FormatInt(*w.Position, 10)
		}
		rows = append(rows, []string{w.Address, w.Client, when(w.StartedAt), position, w.Age, strings.Join(w.Kids, " ")})
	}
	return r.list(all, false, "ADDRESS CLIENT SINCE POSITION AGE KIDS", rows)
}

// unseen says whom the server cannot see.
const unseen = "; watchers of other servers and services that poll the key set are not counted"

// holders says in words who holds a key, a line for each watcher that lacks it.
func holders(kid string, h *app.Holding) []string {
	if h.Unknown != "" {
		return []string{fmt.Sprintf("which watchers hold key %s is not known: %s", kid, h.Unknown)}
	}
	lines := []string{fmt.Sprintf("key %s is held by %d of %d watchers%s", kid, h.Holding, h.Watchers, unseen)}
	for _, w := range h.Lacking {
		row := cells([]string{w.Address, w.Client, when(w.StartedAt)})
		lines = append(lines, fmt.Sprintf("%s lacks it: client %s, since %s", row[0], row[1], row[2]))
	}
	return lines
}
