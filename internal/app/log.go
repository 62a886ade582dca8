package app

import (
	"io"
	"log/slog"
	"os"

	"golang.org/x/term"

	"github.com/authsvc/authsvc/internal/config"
)

func setLevel(v *slog.LevelVar, text string) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(text)); err != nil {
		level = slog.LevelInfo
	}
	v.Set(level)
}

func logger(c config.Log, level *slog.LevelVar, w io.Writer) *slog.Logger {
	setLevel(level, c.Level)
	o := &slog.HandlerOptions{Level: level}
	f, isFile := w.(*os.File)
	if c.Format == "text" || c.Format == "auto" && isFile && term.IsTerminal(int(f.Fd())) {
		return slog.New(slog.NewTextHandler(w, o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}
