package main

// A backend with the handlers that the tests call. Their names and payloads are those of the demo server's test
// routes, so that one test can run against either.

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"strings"
	"time"
)

type backend struct {
	node     *node
	events   *eventWriter
	handlers map[string]func(*call) (any, error)
}

// call is one request for a handler.
type call struct {
	backend    *backend
	session    sessionRecord
	frontendID string
	data       []byte
}

func startBackend(parent context.Context, options nodeOptions, events *eventWriter) (*backend, error) {
	b := &backend{events: events}
	b.handlers = map[string]func(*call) (any, error){
		"test.echo":   echo,
		"test.bind":   bind,
		"test.push":   pushTo,
		"test.kick":   kickSelf,
		"test.sleep":  sleep,
		"test.fail":   fail,
		"test.data":   mergeData,
		"test.notify": noteNotify,
		"test.call":   callRemote,
	}
	var err error
	b.node, err = joinCluster(parent, options, b.handle)
	return b, err
}

func (b *backend) close() { b.node.leave() }

func (b *backend) handle(received request) response {
	route := received.message.route
	parts := strings.Split(route, ".")
	if len(parts) < 2 || len(parts) > 3 {
		return failed(&callError{code: "PIT-400", text: "cannot decode route", metadata: map[string]string{"route": route}})
	}
	name := strings.Join(parts[len(parts)-2:], ".")
	switch received.rpc {
	case rpcSys:
		return b.handleSys(name, route, received)
	case rpcUser:
		return b.handleUser(name, received)
	default:
		return failed(&callError{code: "PIT-400", text: "invalid rpc type", metadata: map[string]string{"route": route}})
	}
}

func (b *backend) handleSys(name, route string, received request) response {
	handler, isKnown := b.handlers[name]
	if !isKnown {
		return failed(&callError{code: "PIT-404", text: "pitaya/handler: " + route + " not found"})
	}
	c := &call{backend: b, frontendID: received.frontendID, data: received.message.data}
	if received.session != nil {
		c.session = *received.session
	}
	result, err := handler(c)
	if err != nil {
		return failed(asCallError(err))
	}
	if received.message.kind == uint64(messageNotify) {
		return response{data: []byte("ack")}
	}
	if raw, isRaw := result.([]byte); isRaw {
		return response{data: raw}
	}
	text, err := json.Marshal(result)
	if err != nil {
		return failed(asCallError(err))
	}
	return response{data: text}
}

// handleUser serves one remote, `test.remote`: it takes a protos.Doc and answers with one.
func (b *backend) handleUser(name string, received request) response {
	if name != "test.remote" {
		return failed(&callError{code: "PIT-404", text: "route not found", metadata: map[string]string{"route": name}})
	}
	doc, _, err := decodeTexts(received.message.data)
	if err != nil {
		return failed(&callError{code: "PIT-400", text: err.Error()})
	}
	return response{data: encodeFirst("re:" + doc)}
}

func failed(failure *callError) response { return response{err: failure} }

var accepted = map[string]int{"code": 200}

func echo(c *call) (any, error) { return c.data, nil }

func bind(c *call) (any, error) {
	var argument struct{ Name string }
	if err := json.Unmarshal(c.data, &argument); err != nil {
		return nil, &callError{code: "PIT-400", text: err.Error()}
	}
	_, err := c.callFrontend("sys.bindsession", sessionRecord{id: c.session.id, uid: argument.Name}.encode())
	return accepted, err
}

// pushTo sends a user `n` pushes `onPush`, each its number in eight bytes. The user is one of the caller's type of
// frontend.
func pushTo(c *call) (any, error) {
	var argument struct {
		Name string
		N    uint64
	}
	if err := json.Unmarshal(c.data, &argument); err != nil {
		return nil, &callError{code: "PIT-400", text: err.Error()}
	}
	frontend, err := c.backend.node.serverByID(c.frontendID)
	if err != nil {
		return nil, err
	}
	subject := "pitaya/" + frontend.Type + "/user/" + argument.Name + "/push"
	for number := range argument.N {
		encoded := push{route: "onPush", uid: argument.Name, data: binary.BigEndian.AppendUint64(nil, number)}.encode()
		if err := c.backend.node.calling.Publish(subject, encoded); err != nil {
			return nil, err
		}
	}
	return accepted, nil
}

func kickSelf(c *call) (any, error) {
	_, err := c.callFrontend("sys.kick", encodeFirst(c.session.uid))
	return accepted, err
}

func sleep(c *call) (any, error) {
	var argument struct{ Ms int64 }
	if err := json.Unmarshal(c.data, &argument); err != nil {
		return nil, &callError{code: "PIT-400", text: err.Error()}
	}
	time.Sleep(time.Duration(argument.Ms) * time.Millisecond)
	return accepted, nil
}

func fail(c *call) (any, error) {
	var argument struct {
		Code     string
		Msg      string
		Metadata map[string]string
	}
	if err := json.Unmarshal(c.data, &argument); err != nil {
		return nil, &callError{code: "PIT-400", text: err.Error()}
	}
	return nil, &callError{code: argument.Code, text: argument.Msg, metadata: argument.Metadata}
}

// mergeData stores the fields of the message in the session, at the frontend too, and answers with all that there are.
func mergeData(c *call) (any, error) {
	fields, stored := map[string]any{}, map[string]any{}
	if err := json.Unmarshal(c.data, &fields); err != nil {
		return nil, &callError{code: "PIT-400", text: err.Error()}
	}
	if len(c.session.data) > 0 {
		if err := json.Unmarshal(c.session.data, &stored); err != nil {
			return nil, &callError{code: "PIT-500", text: err.Error()}
		}
	}
	if len(fields) == 0 {
		return stored, nil
	}
	for key, value := range fields {
		stored[key] = value
	}
	text, err := json.Marshal(stored)
	if err != nil {
		return nil, err
	}
	_, err = c.callFrontend("sys.pushsession", sessionRecord{id: c.session.id, uid: c.session.uid, data: text}.encode())
	return stored, err
}

func noteNotify(c *call) (any, error) {
	c.backend.events.write(event{Event: "notified", Body: c.data})
	return nil, nil
}

// callRemote makes the user RPC `{type}.test.remote`.
func callRemote(c *call) (any, error) {
	var argument struct{ Type, Doc string }
	if err := json.Unmarshal(c.data, &argument); err != nil {
		return nil, &callError{code: "PIT-400", text: err.Error()}
	}
	target, err := c.backend.node.serverOfType(argument.Type)
	if err != nil {
		return nil, err
	}
	result, failure := c.backend.node.callUser(target, argument.Type+".test.remote", encodeFirst(argument.Doc))
	if failure != nil {
		return nil, failure
	}
	doc, _, err := decodeTexts(result)
	return map[string]string{"doc": doc}, err
}

func (c *call) callFrontend(route string, argument []byte) ([]byte, error) {
	frontend, err := c.backend.node.serverByID(c.frontendID)
	if err != nil {
		return nil, err
	}
	result, failure := c.backend.node.callUser(frontend, route, argument)
	if failure != nil {
		return nil, failure
	}
	return result, nil
}
