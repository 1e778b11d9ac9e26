package main

// A frontend with a TCP acceptor: it owns sessions and forwards what they send to backends.

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"
)

const heartbeatSeconds = 30

type frontend struct {
	node     *node
	events   *eventWriter
	listener net.Listener
	lastID   atomic.Int64

	mutex    sync.Mutex
	sessions map[int64]*clientSession
	byUID    map[string]*clientSession
}

// clientSession is one player's connection. Its fields are guarded by the frontend's mutex, except for writing.
type clientSession struct {
	id            int64
	uid           string
	data          []byte
	subscriptions []*nats.Subscription

	connection net.Conn
	writing    sync.Mutex
}

func startFrontend(parent context.Context, options nodeOptions, address string, events *eventWriter) (*frontend, error) {
	options.isFrontend = true
	f := &frontend{events: events, sessions: map[int64]*clientSession{}, byUID: map[string]*clientSession{}}
	var err error
	if f.listener, err = net.Listen("tcp", address); err != nil {
		return nil, err
	}
	if f.node, err = joinCluster(parent, options, f.handle); err != nil {
		_ = f.listener.Close()
		return nil, err
	}
	_, err = f.node.serving.Subscribe("pitaya/"+options.kind+"/bindings", f.handleBinding)
	if err == nil {
		err = f.node.serving.Flush()
	}
	if err != nil {
		f.close()
		return nil, err
	}
	go f.accept()
	return f, nil
}

func (f *frontend) address() string { return f.listener.Addr().String() }

func (f *frontend) close() {
	_ = f.listener.Close()
	f.mutex.Lock()
	for _, session := range f.sessions {
		_ = session.connection.Close()
	}
	f.mutex.Unlock()
	f.node.leave()
}

func (f *frontend) accept() {
	for {
		connection, err := f.listener.Accept()
		if err != nil {
			return
		}
		go f.serve(connection)
	}
}

func (f *frontend) serve(connection net.Conn) {
	session := &clientSession{id: f.lastID.Add(1), connection: connection}
	f.mutex.Lock()
	f.sessions[session.id] = session
	f.mutex.Unlock()
	defer f.forget(session)
	isWorking := false
	for {
		received, err := readPacket(connection)
		if err != nil {
			return
		}
		switch received.kind {
		case packetHandshake:
			if !f.greet(session, received.body) {
				return
			}
		case packetHandshakeAck:
			isWorking = true
		case packetData:
			decoded, err := decodeMessage(received.body, nil)
			if err != nil || !isWorking {
				return
			}
			// Pitaya handles messages of one client side by side; so does this one.
			go f.forward(session, decoded)
		}
	}
}

func (f *frontend) greet(session *clientSession, body []byte) bool {
	var asked struct{ User map[string]any }
	answer := handshakeResponse{Code: 200, Sys: handshakeSys{Heartbeat: heartbeatSeconds, Dict: map[string]uint16{}, Serializer: "json"}}
	if json.Unmarshal(body, &asked) != nil {
		answer.Code = 400
	}
	text, err := json.Marshal(answer)
	if err != nil {
		return false
	}
	f.mutex.Lock()
	session.data = []byte(`{"ipversion":"ipv4"}`)
	f.mutex.Unlock()
	return session.write(packetHandshake, text) == nil && answer.Code == 200
}

func (f *frontend) forget(session *clientSession) {
	_ = session.connection.Close()
	f.mutex.Lock()
	defer f.mutex.Unlock()
	delete(f.sessions, session.id)
	if f.byUID[session.uid] == session {
		delete(f.byUID, session.uid)
	}
	for _, subscription := range session.subscriptions {
		_ = subscription.Unsubscribe()
	}
}

func (s *clientSession) write(kind byte, body []byte) error {
	encoded, err := encodePacket(kind, body)
	if err != nil {
		return err
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	_, err = s.connection.Write(encoded)
	return err
}

func (s *clientSession) send(outgoing message) {
	if encoded, err := encodeMessage(outgoing); err == nil {
		_ = s.write(packetData, encoded)
	}
}

func (s *clientSession) kick() {
	_ = s.write(packetKick, nil)
	_ = s.connection.Close()
}

func (f *frontend) forward(session *clientSession, received message) {
	data, failure := f.callBackend(session, received)
	if received.kind != messageRequest || received.id == 0 {
		return
	}
	answer := message{kind: messageResponse, id: received.id, data: data}
	if failure != nil {
		answer.isError = true
		answer.data = failure.json()
	}
	session.send(answer)
}

// json is the error's body for a client with the JSON serializer (client protocol 14.3).
func (e *callError) json() []byte {
	text, _ := json.Marshal(struct {
		Code     string            `json:"code,omitempty"`
		Msg      string            `json:"msg,omitempty"`
		Metadata map[string]string `json:"metadata,omitempty"`
	}{e.code, e.text, e.metadata})
	return text
}

func (f *frontend) callBackend(session *clientSession, received message) ([]byte, *callError) {
	parts := strings.Split(received.route, ".")
	if len(parts) != 3 {
		return nil, &callError{code: "PIT-404", text: "pitaya/handler: " + received.route + " not found"}
	}
	target, err := f.node.serverOfType(parts[0])
	if err != nil {
		return nil, asCallError(err)
	}
	f.mutex.Lock()
	record := sessionRecord{id: session.id, uid: session.uid, data: session.data}
	f.mutex.Unlock()
	return f.node.call(target, request{
		rpc:     rpcSys,
		session: &record,
		message: &callMessage{id: received.id, route: received.route, data: received.data, kind: uint64(received.kind)},
	})
}

// handle serves the three remotes that every frontend has (cluster protocol 9.2).
func (f *frontend) handle(received request) response {
	var result []byte
	var err error
	switch received.message.route {
	case "sys.bindsession":
		result, err = response{data: []byte("ack")}.encode(), f.withSession(received.message.data, f.bind)
	case "sys.pushsession":
		result, err = response{data: []byte("ack")}.encode(), f.withSession(received.message.data, f.replaceData)
	case "sys.kick":
		result, err = appendVarint(nil, 1, 1), f.kickUser(received.message.data)
	default:
		err = &callError{code: "PIT-404", text: "route not found", metadata: map[string]string{"route": received.message.route}}
	}
	if err != nil {
		return failed(asCallError(err))
	}
	return response{data: result}
}

var errSessionNotFound = errors.New("session not found")

func (f *frontend) withSession(encoded []byte, change func(*clientSession, sessionRecord) error) error {
	record, err := decodeSession(encoded)
	if err != nil {
		return err
	}
	f.mutex.Lock()
	session, isKnown := f.sessions[record.id]
	f.mutex.Unlock()
	if !isKnown {
		return errSessionNotFound
	}
	return change(session, record)
}

// bind answers only after both subscriptions are at the NATS server, so that a push that follows finds them.
func (f *frontend) bind(session *clientSession, record sessionRecord) error {
	if record.uid == "" {
		return errors.New("illegal uid")
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	if session.uid != "" {
		return errors.New("session is already bound to an uid")
	}
	subject := "pitaya/" + f.node.kind + "/user/" + record.uid
	for suffix, handle := range map[string]nats.MsgHandler{"/push": f.handlePush, "/kick": f.handleKick} {
		subscription, err := f.node.serving.Subscribe(subject+suffix, handle)
		if err != nil {
			return err
		}
		session.subscriptions = append(session.subscriptions, subscription)
	}
	if err := f.node.serving.Flush(); err != nil {
		return err
	}
	session.uid = record.uid
	if older := f.byUID[record.uid]; older != nil {
		go older.kick()
	}
	f.byUID[record.uid] = session
	notice := bindMessage{uid: record.uid, frontendID: f.node.id}
	return f.node.calling.Publish("pitaya/"+f.node.kind+"/bindings", notice.encode())
}

func (f *frontend) replaceData(session *clientSession, record sessionRecord) error {
	var members map[string]any
	if len(record.data) == 0 {
		return nil
	}
	if err := json.Unmarshal(record.data, &members); err != nil {
		return err
	}
	f.mutex.Lock()
	defer f.mutex.Unlock()
	session.data = record.data
	return nil
}

func (f *frontend) sessionOf(uid string) *clientSession {
	f.mutex.Lock()
	defer f.mutex.Unlock()
	return f.byUID[uid]
}

func (f *frontend) kickUser(encoded []byte) error {
	uid, _, err := decodeTexts(encoded)
	if err != nil {
		return err
	}
	session := f.sessionOf(uid)
	if session == nil {
		return errSessionNotFound
	}
	session.kick()
	return nil
}

func (f *frontend) handlePush(received *nats.Msg) {
	decoded, err := decodePush(received.Data)
	if err != nil {
		return
	}
	if session := f.sessionOf(decoded.uid); session != nil {
		session.send(message{kind: messagePush, route: decoded.route, data: decoded.data})
	}
}

func (f *frontend) handleKick(received *nats.Msg) { _ = f.kickUser(received.Data) }

// handleBinding kicks a session whose uid another frontend of the same type has just bound.
func (f *frontend) handleBinding(received *nats.Msg) {
	uid, frontendID, err := decodeTexts(received.Data)
	if err != nil || frontendID == f.node.id {
		return
	}
	if session := f.sessionOf(uid); session != nil {
		session.kick()
	}
	f.events.write(event{Event: "binding", ID: frontendID, Message: uid})
}
