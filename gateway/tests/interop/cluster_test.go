package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// servers are a NATS server and an etcd of this test run.
type servers struct{ natsURL, etcdEndpoint string }

// findServer takes the path from the environment or the search path.
func findServer(t *testing.T, variable, name string) string {
	t.Helper()
	if path := os.Getenv(variable); path != "" {
		return path
	}
	for _, candidate := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	t.Skipf("SKIPPED: %s is not installed; nothing was checked (set %s)", name, variable)
	return ""
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}

func startServer(t *testing.T, address, path string, arguments ...string) {
	t.Helper()
	process := exec.Command(path, arguments...)
	var log strings.Builder
	process.Stderr = &log
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = process.Process.Kill()
		_ = process.Wait()
	})
	for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if connection, err := net.Dial("tcp", address); err == nil {
			_ = connection.Close()
			return
		}
	}
	t.Fatalf("%s did not listen on %s", path, address)
}

func startServers(t *testing.T) servers {
	t.Helper()
	natsPath := findServer(t, "DRAGONFRUIT_NATS_SERVER", "nats-server")
	etcdPath := findServer(t, "DRAGONFRUIT_ETCD", "etcd")
	natsAddress, etcdAddress, peerAddress := freeAddress(t), freeAddress(t), freeAddress(t)
	host, port, err := net.SplitHostPort(natsAddress)
	if err != nil {
		t.Fatal(err)
	}
	startServer(t, natsAddress, natsPath, "--addr", host, "--port", port)
	client, peer := "http://"+etcdAddress, "http://"+peerAddress
	startServer(t, etcdAddress, etcdPath, "--name", "test", "--data-dir", filepath.Join(t.TempDir(), "etcd"), "--log-level", "error",
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "test="+peer)
	return servers{natsURL: "nats://" + natsAddress, etcdEndpoint: etcdAddress}
}

// peer is one role of the program, run in this process through its command lines.
type peer struct {
	t     *testing.T
	in    io.WriteCloser
	lines *bufio.Scanner
	ended chan error
}

func startPeer(t *testing.T, arguments ...string) *peer {
	t.Helper()
	inReader, inWriter := io.Pipe()
	outReader, outWriter := io.Pipe()
	started := &peer{t: t, in: inWriter, lines: newLineScanner(outReader), ended: make(chan error, 1)}
	go func() {
		err := run(arguments, inReader, outWriter)
		_ = outWriter.CloseWithError(io.EOF)
		_ = inReader.Close()
		started.ended <- err
	}()
	t.Cleanup(started.end)
	return started
}

func (p *peer) end() {
	_ = p.in.Close()
	go func() {
		for p.lines.Scan() { // what nobody asked for any more
		}
	}()
	if err := <-p.ended; err != nil {
		p.t.Error(err)
	}
}

func (p *peer) next() event {
	p.t.Helper()
	if !p.lines.Scan() {
		p.t.Fatal("the peer has ended")
	}
	var line event
	if err := json.Unmarshal(p.lines.Bytes(), &line); err != nil {
		p.t.Fatal(err)
	}
	return line
}

func (p *peer) tell(text string) event {
	p.t.Helper()
	if _, err := fmt.Fprintln(p.in, text); err != nil {
		p.t.Fatal(err)
	}
	return p.next()
}

func (p *peer) expect(text, wantEvent, wantBody string) {
	p.t.Helper()
	if got := p.tell(text); got.Event != wantEvent || string(got.Body) != wantBody {
		p.t.Fatalf("%s\ngot  %s %s (%s %s)\nwant %s %s", text, got.Event, got.Body, got.Code, got.Message, wantEvent, wantBody)
	}
}

func clusterFlags(s servers, role, kind, flavor string) []string {
	return []string{role, "--nats", s.natsURL, "--etcd", s.etcdEndpoint, "--type", kind, "--flavor", flavor}
}

func awaitServer(t *testing.T, s servers, kind string) {
	t.Helper()
	watcher, err := joinCluster(context.Background(), nodeOptions{natsURL: s.natsURL, etcdEndpoint: s.etcdEndpoint, kind: "watcher", flavor: "v3"}, func(request) response { return response{} })
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.leave()
	for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if _, err := watcher.serverOfType(kind); err == nil {
			return
		}
	}
	t.Fatalf("no server of type %s", kind)
}

func TestClientFrontendAndBackendWorkTogether(t *testing.T) {
	s := startServers(t)
	for _, flavor := range []string{"v2", "v3"} {
		t.Run(flavor, func(t *testing.T) {
			room := "room" + flavor
			backend := startPeer(t, clusterFlags(s, "gobackend", room, flavor)...)
			backend.next()
			frontend := startPeer(t, clusterFlags(s, "gofrontend", "connector", flavor)...)
			ready := frontend.next()
			awaitServer(t, s, room)
			playThrough(t, backend, ready.Address, room)
		})
	}
}

func playThrough(t *testing.T, backend *peer, address, room string) {
	client := startPeer(t, "goclient")
	ask := func(do, route, body string) string {
		return fmt.Sprintf(`{"do":%q,"route":"%s.test.%s","body":%s}`, do, room, route, body)
	}
	connected := client.tell(fmt.Sprintf(`{"do":"connect","transport":"tcp","address":%q}`, address))
	if connected.Event != "connected" {
		t.Fatal(connected.Message)
	}
	client.expect(ask("request", "echo", `{"a":[1,2]}`), "response", `{"a":[1,2]}`)
	if failure := client.tell(ask("request", "nope", `{}`)); failure.Code != "PIT-404" {
		t.Fatalf("%+v", failure)
	}
	if failure := client.tell(ask("request", "fail", `{"code":"GAME-1","msg":"no"}`)); failure.Code != "GAME-1" || failure.Message != "no" {
		t.Fatalf("%+v", failure)
	}
	client.expect(ask("request", "bind", `{"name":"u-1"}`), "response", `{"code":200}`)
	if failure := client.tell(ask("request", "bind", `{"name":"u-2"}`)); failure.Event != "error" {
		t.Fatalf("%+v", failure)
	}
	client.expect(ask("request", "data", `{"level":7}`), "response", `{"ipversion":"ipv4","level":7}`)
	client.expect(ask("request", "data", `{}`), "response", `{"ipversion":"ipv4","level":7}`)
	client.expect(ask("request", "push", `{"name":"u-1","n":2}`), "response", `{"code":200}`)
	for _, number := range []string{"0000000000000000", "0000000000000001"} {
		if received := client.tell(`{"do":"await_push"}`); received.Route != "onPush" || received.Hex != number {
			t.Fatalf("%+v", received)
		}
	}
	client.expect(ask("request", "call", `{"type":"`+room+`","doc":"x"}`), "response", `{"doc":"re:x"}`)
	client.expect(ask("notify", "notify", `{"n":2}`), "sent", "")
	if noted := backend.next(); noted.Event != "notified" || string(noted.Body) != `{"n":2}` {
		t.Fatalf("%+v", noted)
	}
	client.expect(ask("notify", "kick", `{}`), "sent", "")
	if ended := client.tell(`{"do":"await_end"}`); !ended.Kicked {
		t.Fatalf("%+v", ended)
	}
}

func TestAUserOfTwoFrontendsStaysOnTheSecond(t *testing.T) {
	s := startServers(t)
	startPeer(t, clusterFlags(s, "gobackend", "room", "v3")...).next()
	first := startPeer(t, clusterFlags(s, "gofrontend", "connector", "v3")...)
	second := startPeer(t, clusterFlags(s, "gofrontend", "connector", "v3")...)
	var clients []*peer
	for _, frontend := range []*peer{first, second} {
		client := startPeer(t, "goclient")
		client.tell(fmt.Sprintf(`{"do":"connect","transport":"tcp","address":%q}`, frontend.next().Address))
		client.expect(`{"do":"request","route":"room.test.bind","body":{"name":"same"}}`, "response", `{"code":200}`)
		clients = append(clients, client)
	}
	if ended := clients[0].tell(`{"do":"await_end"}`); !ended.Kicked {
		t.Fatalf("%+v", ended)
	}
	clients[1].expect(`{"do":"request","route":"room.test.echo","body":{}}`, "response", `{}`)
}
