// Package lines is how the two programs of this module talk with the tests: commands in and events out, each one line
// of JSON.
package lines

import (
	"bufio"
	"encoding/json"
	"io"
	"sync"
)

// lineBytesMax bounds one command.
const lineBytesMax = 4 << 20

// Command is one line from a test. Fields that do not apply stay away.
type Command struct {
	Do        string            `json:"do"`
	Transport string            `json:"transport"`
	Address   string            `json:"address"`
	Route     string            `json:"route"`
	Body      json.RawMessage   `json:"body"`
	Bodies    []json.RawMessage `json:"bodies"`
}

// Event is one line to a test. Fields that do not apply stay away.
type Event struct {
	Event   string `json:"event"`
	ID      string `json:"id,omitempty"`
	Address string `json:"address,omitempty"`
	// WS is the address of the WebSocket acceptor.
	WS    string `json:"ws,omitempty"`
	Route string `json:"route,omitempty"`
	// Body is a payload that is JSON, Hex one that is not.
	Body    json.RawMessage `json:"body,omitempty"`
	Hex     string          `json:"hex,omitempty"`
	Code    string          `json:"code,omitempty"`
	Message string          `json:"message,omitempty"`
	Kicked  bool            `json:"kicked,omitempty"`
}

// Failed is the event of a command that could not be done.
func Failed(err error) Event { return Event{Event: "failed", Message: err.Error()} }

// Writer writes whole lines from any goroutine.
type Writer struct {
	mutex   sync.Mutex
	encoder *json.Encoder
}

// NewWriter writes events to out.
func NewWriter(out io.Writer) *Writer { return &Writer{encoder: json.NewEncoder(out)} }

// Write writes one event. A reader that is gone is noticed by the end of standard input, not here.
func (w *Writer) Write(event Event) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	_ = w.encoder.Encode(event)
}

// NewScanner reads commands.
func NewScanner(in io.Reader) *bufio.Scanner {
	scanner := bufio.NewScanner(in)
	scanner.Buffer(make([]byte, 64<<10), lineBytesMax)
	return scanner
}
