// Command limits holds what the service's figures are measured beside: for each of them the least that any program must do
// for the same work, bare. One file is one limit. A server prints its address and serves until its standard input ends; a
// loop does its work each time it is told to, and prints what that cost.
package main

import (
	"fmt"
	"os"
)

func main() {
	limits := map[string]func([]string) error{
		"echo": echo, "json": jsonEcho, "forward": forward, "sign": sign, "update": update, "rotate": rotate, "login": login, "verify": verifyAndDecode, "signature": signature,
		"fanout": fanout,
	}
	if len(os.Args) < 2 || limits[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: limits LIMIT [ARGUMENT...]")
		os.Exit(2)
	}
	if err := limits[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "limits:", err)
		os.Exit(1)
	}
}
