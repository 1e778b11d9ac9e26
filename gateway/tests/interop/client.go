package main

// A client that is as easily hurt as Pitaya's own Go client: the handshake answer must come alone and whole in the
// first read, and its heartbeat must be a whole number.

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/gorilla/websocket"
)

const waitTimeout = 10 * time.Second

// transport carries whole packets.
type transport interface {
	readFirst() (packet, error)
	read() (packet, error)
	write(encoded []byte) error
	close()
}

type tcpTransport struct{ connection net.Conn }

// readFirst makes one read, takes one packet out of it, and refuses anything more: Pitaya's Go client throws it away.
func (t tcpTransport) readFirst() (packet, error) {
	buffer := make([]byte, 64<<10)
	_ = t.connection.SetReadDeadline(time.Now().Add(waitTimeout))
	taken, err := t.connection.Read(buffer)
	if err != nil {
		return packet{}, err
	}
	_ = t.connection.SetReadDeadline(time.Time{})
	return onlyPacket(buffer[:taken])
}

func (t tcpTransport) read() (packet, error)      { return readPacket(t.connection) }
func (t tcpTransport) write(encoded []byte) error { _, err := t.connection.Write(encoded); return err }
func (t tcpTransport) close()                     { _ = t.connection.Close() }

type webSocketTransport struct{ connection *websocket.Conn }

func (t webSocketTransport) readFirst() (packet, error) {
	_ = t.connection.SetReadDeadline(time.Now().Add(waitTimeout))
	first, err := t.read()
	_ = t.connection.SetReadDeadline(time.Time{})
	return first, err
}

// read insists on one whole packet in each binary message, which is what every Pitaya client can read.
func (t webSocketTransport) read() (packet, error) {
	kind, content, err := t.connection.ReadMessage()
	if err != nil {
		return packet{}, err
	}
	if kind != websocket.BinaryMessage {
		return packet{}, fmt.Errorf("message of kind %d where binary was due", kind)
	}
	return onlyPacket(content)
}

func (t webSocketTransport) write(encoded []byte) error {
	return t.connection.WriteMessage(websocket.BinaryMessage, encoded)
}
func (t webSocketTransport) close() { _ = t.connection.Close() }

func onlyPacket(content []byte) (packet, error) {
	reader := &sliceReader{content}
	only, err := readPacket(reader)
	if err != nil {
		return packet{}, fmt.Errorf("%d bytes hold no whole packet: %w", len(content), err)
	}
	if len(reader.rest) > 0 {
		return packet{}, fmt.Errorf("%d bytes follow the packet", len(reader.rest))
	}
	return only, nil
}

type sliceReader struct{ rest []byte }

func (r *sliceReader) Read(out []byte) (int, error) {
	if len(r.rest) == 0 && len(out) > 0 {
		return 0, io.EOF
	}
	taken := copy(out, r.rest)
	r.rest = r.rest[taken:]
	return taken, nil
}

// client is one connection. One goroutine reads; commands come from one other.
type client struct {
	transport transport
	handshake handshakeResponse
	routes    map[uint16]string
	lastID    uint64
	responses chan message
	pushes    chan message
	kicked    chan struct{}
	ended     chan struct{}
}

func dial(kind, address string) (transport, error) {
	switch kind {
	case "tcp":
		connection, err := net.DialTimeout("tcp", address, waitTimeout)
		return tcpTransport{connection}, err
	case "ws":
		dialer := websocket.Dialer{HandshakeTimeout: waitTimeout}
		connection, answer, err := dialer.Dial("ws://"+address+"/", nil)
		if answer != nil && answer.Body != nil {
			_ = answer.Body.Close()
		}
		return webSocketTransport{connection}, err
	default:
		return nil, fmt.Errorf("no transport called %q", kind)
	}
}

// connect shakes hands and starts reading.
func connect(kind, address string, user json.RawMessage) (*client, error) {
	carrier, err := dial(kind, address)
	if err != nil {
		return nil, err
	}
	c := &client{
		transport: carrier,
		routes:    map[uint16]string{},
		responses: make(chan message, 1024),
		pushes:    make(chan message, 1024),
		kicked:    make(chan struct{}),
		ended:     make(chan struct{}),
	}
	if err := c.shakeHands(user); err != nil {
		carrier.close()
		return nil, err
	}
	go c.receive()
	go c.beat()
	return c, nil
}

func (c *client) shakeHands(user json.RawMessage) error {
	if user == nil {
		user = json.RawMessage("{}")
	}
	body, err := json.Marshal(map[string]any{
		"sys":  map[string]string{"platform": "mac", "libVersion": "0.3.5-release", "clientBuildNumber": "20", "clientVersion": "2.1"},
		"user": user,
	})
	if err != nil {
		return err
	}
	if err := c.write(packetHandshake, body); err != nil {
		return err
	}
	first, err := c.transport.readFirst()
	if err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	if first.kind != packetHandshake {
		return fmt.Errorf("packet of type %d where the handshake was due", first.kind)
	}
	if c.handshake, err = decodeHandshakeResponse(first.body); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	if c.handshake.Code != 200 {
		return fmt.Errorf("handshake refused with code %d", c.handshake.Code)
	}
	for route, code := range c.handshake.Sys.Dict {
		c.routes[code] = route
	}
	return c.write(packetHandshakeAck, nil)
}

func (c *client) write(kind byte, body []byte) error {
	encoded, err := encodePacket(kind, body)
	if err != nil {
		return err
	}
	return c.transport.write(encoded)
}

func (c *client) receive() {
	defer close(c.ended)
	for {
		received, err := c.transport.read()
		if err != nil {
			return
		}
		switch received.kind {
		case packetKick:
			close(c.kicked)
			c.transport.close()
			return
		case packetData:
			decoded, err := decodeMessage(received.body, c.routes)
			if err != nil {
				c.transport.close()
				return
			}
			if decoded.kind == messagePush {
				c.pushes <- decoded
			} else {
				c.responses <- decoded
			}
		}
	}
}

// beat sends heartbeats at the announced interval. gorilla allows one writer at a time, so it goes through a packet of
// its own only on TCP; the tests on WebSocket are over long before the first one is due.
func (c *client) beat() {
	if _, isTCP := c.transport.(tcpTransport); !isTCP || c.handshake.Sys.Heartbeat <= 0 {
		return
	}
	ticker := time.NewTicker(time.Duration(c.handshake.Sys.Heartbeat) * time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-c.ended:
			return
		case <-ticker.C:
			_ = c.write(packetHeartbeat, nil)
		}
	}
}

func (c *client) send(kind byte, route string, body []byte) (uint64, error) {
	c.lastID++
	outgoing := message{kind: kind, id: c.lastID, route: route, data: body}
	encoded, err := encodeMessage(outgoing)
	if err != nil {
		return 0, err
	}
	return c.lastID, c.write(packetData, encoded)
}

// request waits for the response of the request that it sends; responses of others in between are an error, because
// commands come one after the other.
func (c *client) request(route string, body []byte) (message, error) {
	id, err := c.send(messageRequest, route, body)
	if err != nil {
		return message{}, err
	}
	answer, err := c.await(c.responses)
	if err == nil && answer.id != id {
		err = fmt.Errorf("response with id %d where %d was due", answer.id, id)
	}
	return answer, err
}

// burst sends requests without waiting and returns the responses in the order of their arrival.
func (c *client) burst(route string, bodies []json.RawMessage) ([]message, error) {
	for _, body := range bodies {
		if _, err := c.send(messageRequest, route, body); err != nil {
			return nil, err
		}
	}
	answers := make([]message, 0, len(bodies))
	for range bodies {
		answer, err := c.await(c.responses)
		if err != nil {
			return answers, err
		}
		answers = append(answers, answer)
	}
	return answers, nil
}

func (c *client) await(source <-chan message) (message, error) {
	select {
	case received := <-source:
		return received, nil
	default:
	}
	select {
	case received := <-source:
		return received, nil
	case <-c.ended:
		// What was read before the end still counts.
		select {
		case received := <-source:
			return received, nil
		default:
			return message{}, errors.New("the connection ended")
		}
	case <-time.After(waitTimeout):
		return message{}, errors.New("nothing came in time")
	}
}

// awaitEnd reports whether a kick came before the end.
func (c *client) awaitEnd() (bool, error) {
	select {
	case <-c.ended:
	case <-time.After(waitTimeout):
		return false, errors.New("the connection did not end in time")
	}
	select {
	case <-c.kicked:
		return true, nil
	default:
		return false, nil
	}
}
