package main

// The client's commands: one JSON line in, one JSON line out, in order.

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
)

type command struct {
	Do        string            `json:"do"`
	Transport string            `json:"transport"`
	Address   string            `json:"address"`
	Route     string            `json:"route"`
	Body      json.RawMessage   `json:"body"`
	Bodies    []json.RawMessage `json:"bodies"`
	User      json.RawMessage   `json:"user"`
}

func driveClient(in io.Reader, events *eventWriter) error {
	var connected *client
	defer func() {
		if connected != nil {
			connected.transport.close()
		}
	}()
	lines := newLineScanner(in)
	for lines.Scan() {
		var asked command
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			return err
		}
		if asked.Do == "connect" {
			var err error
			if connected != nil {
				connected.transport.close()
			}
			connected, err = connect(asked.Transport, asked.Address, asked.User)
			events.write(connectEvent(connected, err))
			continue
		}
		if connected == nil {
			events.write(failureEvent(errors.New("not connected")))
			continue
		}
		for _, line := range connected.obey(asked) {
			events.write(line)
		}
	}
	return lines.Err()
}

func failureEvent(err error) event { return event{Event: "failed", Message: err.Error()} }

func connectEvent(connected *client, err error) event {
	if err != nil {
		return failureEvent(err)
	}
	body, err := json.Marshal(connected.handshake)
	if err != nil {
		return failureEvent(err)
	}
	return event{Event: "connected", Body: body}
}

func (c *client) obey(asked command) []event {
	switch asked.Do {
	case "request":
		return []event{messageEvent(c.request(asked.Route, asked.Body))}
	case "burst":
		answers, err := c.burst(asked.Route, asked.Bodies)
		lines := make([]event, 0, len(asked.Bodies))
		for _, answer := range answers {
			lines = append(lines, messageEvent(answer, nil))
		}
		for len(lines) < len(asked.Bodies) {
			lines = append(lines, failureEvent(err))
		}
		return lines
	case "notify":
		if _, err := c.send(messageNotify, asked.Route, asked.Body); err != nil {
			return []event{failureEvent(err)}
		}
		return []event{{Event: "sent"}}
	case "await_push":
		return []event{messageEvent(c.await(c.pushes))}
	case "await_end":
		kicked, err := c.awaitEnd()
		if err != nil {
			return []event{failureEvent(err)}
		}
		return []event{{Event: "ended", Kicked: kicked}}
	default:
		return []event{failureEvent(errors.New("no command called " + asked.Do))}
	}
}

func messageEvent(received message, err error) event {
	if err != nil {
		return failureEvent(err)
	}
	line := event{Event: "response", Route: received.route}
	if json.Valid(received.data) {
		line.Body = received.data
	} else {
		line.Hex = hex.EncodeToString(received.data)
	}
	if received.kind == messagePush {
		line.Event = "push"
	}
	if received.isError {
		var failure struct{ Code, Msg string }
		if err := json.Unmarshal(received.data, &failure); err != nil {
			return failureEvent(err)
		}
		line.Event, line.Code, line.Message = "error", failure.Code, failure.Msg
	}
	return line
}
