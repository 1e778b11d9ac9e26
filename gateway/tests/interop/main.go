// Program interop is a peer written in Go for the tests of the gateway and the worker: a client, a backend and a
// frontend of the Pitaya protocol.
//
// It is not Pitaya. It is a second implementation, from the protocol's description, that shares no line with the Rust
// one, and it uses the same NATS and etcd client libraries, in the same versions, as Pitaya's main line; its own tests
// hold it to bytes that were captured from live Pitaya servers. What it cannot show is behaviour of Pitaya that the
// description gets wrong.
//
// Each role reads commands as JSON lines from standard input where it takes any, writes one JSON line for each event
// to standard output, and ends when standard input ends: a test that dies takes its peers with it.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// lineBytesMax bounds one command or event line.
const lineBytesMax = 4 << 20

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		os.Exit(1)
	}
}

func run(arguments []string, in io.Reader, out io.Writer) error {
	if len(arguments) == 0 {
		return fmt.Errorf("usage: interop goclient|gobackend|gofrontend [flags]")
	}
	events := newEventWriter(out)
	context, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	role, flags := arguments[0], flag.NewFlagSet(arguments[0], flag.ContinueOnError)
	if role == "goclient" {
		return driveClient(in, events)
	}

	options := nodeOptions{}
	flags.StringVar(&options.natsURL, "nats", "", "URL of the NATS server")
	flags.StringVar(&options.etcdEndpoint, "etcd", "", "address of etcd")
	flags.StringVar(&options.kind, "type", "", "server type")
	flags.StringVar(&options.flavor, "flavor", "v3", "which Pitaya's metadata to send: v2 or v3")
	address := flags.String("tcp", "127.0.0.1:0", "address that a frontend listens on")
	if err := flags.Parse(arguments[1:]); err != nil {
		return err
	}

	switch role {
	case "gobackend":
		backend, err := startBackend(context, options, events)
		if err != nil {
			return err
		}
		events.write(event{Event: "ready", ID: backend.node.id})
		waitForEnd(context, in)
		backend.close()
		return nil
	case "gofrontend":
		frontend, err := startFrontend(context, options, *address, events)
		if err != nil {
			return err
		}
		events.write(event{Event: "ready", ID: frontend.node.id, Address: frontend.address()})
		waitForEnd(context, in)
		frontend.close()
		return nil
	default:
		return fmt.Errorf("no role called %q", role)
	}
}

// waitForEnd returns when standard input ends or the process is asked to stop.
func waitForEnd(context context.Context, in io.Reader) {
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, in)
		close(ended)
	}()
	select {
	case <-ended:
	case <-context.Done():
	}
}

// event is one line of output. Fields that do not apply stay away.
type event struct {
	Event   string `json:"event"`
	ID      string `json:"id,omitempty"`
	Address string `json:"address,omitempty"`
	Route   string `json:"route,omitempty"`
	// Body is a payload that is JSON, Hex one that is not.
	Body    json.RawMessage `json:"body,omitempty"`
	Hex     string          `json:"hex,omitempty"`
	Code    string          `json:"code,omitempty"`
	Message string          `json:"message,omitempty"`
	Kicked  bool            `json:"kicked,omitempty"`
}

type eventWriter struct {
	mutex   sync.Mutex
	encoder *json.Encoder
}

func newEventWriter(out io.Writer) *eventWriter {
	return &eventWriter{encoder: json.NewEncoder(out)}
}

func (w *eventWriter) write(line event) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	// A reader that is gone is noticed by the end of standard input.
	_ = w.encoder.Encode(line)
}

func newLineScanner(in io.Reader) *bufio.Scanner {
	scanner := bufio.NewScanner(in)
	scanner.Buffer(make([]byte, 64<<10), lineBytesMax)
	return scanner
}
