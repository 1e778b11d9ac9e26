// Program pitaya-client drives Pitaya's own Go client by JSON lines: a command a line from standard input, an event a
// line to standard output. It ends when standard input ends.
//
// Commands: connect {transport: tcp|ws, address}, request {route, body}, burst {route, bodies}, notify {route, body},
// await_push, await_end.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"dragonfruit/interop/pitaya/lines"
)

func main() {
	if err := drive(os.Stdin, lines.NewWriter(os.Stdout)); err != nil {
		fmt.Fprintln(os.Stderr, "pitaya-client:", err)
		os.Exit(1)
	}
}

func drive(in io.Reader, events *lines.Writer) error {
	var connected *player
	defer func() {
		if connected != nil {
			connected.leave()
		}
	}()
	commands := lines.NewScanner(in)
	for commands.Scan() {
		var asked lines.Command
		if err := json.Unmarshal(commands.Bytes(), &asked); err != nil {
			return err
		}
		if asked.Do == "connect" {
			if connected != nil {
				connected.leave()
			}
			var err error
			if connected, err = connect(asked.Transport, asked.Address); err != nil {
				connected = nil
				events.Write(lines.Failed(err))
				continue
			}
			events.Write(lines.Event{Event: "connected"})
			continue
		}
		if connected == nil {
			events.Write(lines.Failed(errors.New("not connected")))
			continue
		}
		for _, event := range connected.obey(asked) {
			events.Write(event)
		}
	}
	return commands.Err()
}

func (p *player) obey(asked lines.Command) []lines.Event {
	switch asked.Do {
	case "request":
		return p.burst(asked.Route, []json.RawMessage{asked.Body})
	case "burst":
		return p.burst(asked.Route, asked.Bodies)
	case "notify":
		if err := p.client.SendNotify(asked.Route, asked.Body); err != nil {
			return []lines.Event{lines.Failed(err)}
		}
		return []lines.Event{{Event: "sent"}}
	case "await_push":
		return []lines.Event{p.awaitPush()}
	case "await_end":
		return []lines.Event{p.awaitEnd()}
	default:
		return []lines.Event{lines.Failed(errors.New("no command called " + asked.Do))}
	}
}
