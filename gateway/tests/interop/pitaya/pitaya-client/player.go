package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/topfreegames/pitaya/v3/pkg/client"
	"github.com/topfreegames/pitaya/v3/pkg/conn/message"
	"github.com/topfreegames/pitaya/v3/pkg/logger"
	logruswrapper "github.com/topfreegames/pitaya/v3/pkg/logger/logrus"

	"dragonfruit/interop/pitaya/lines"
)

const (
	answerTimeout = 10 * time.Second
	pollInterval  = 5 * time.Millisecond
	pushesMax     = 10_000
)

// player is one connected client. Pitaya's client hands everything that arrives to one channel, which must be read all
// the time; it has no event for the end of a connection, only a flag.
type player struct {
	client *client.Client
	log    *kickLog
	pushes chan *message.Message

	mutex   sync.Mutex
	answers map[uint]chan *message.Message
}

func connect(transport, address string) (*player, error) {
	p := &player{
		client:  client.New(logrus.PanicLevel, answerTimeout),
		log:     &kickLog{},
		pushes:  make(chan *message.Message, pushesMax),
		answers: map[uint]chan *message.Message{},
	}
	p.log.install()
	var err error
	switch transport {
	case "tcp":
		err = p.client.ConnectTo(address)
	case "ws":
		err = p.client.ConnectToWS(address, "/")
	default:
		err = fmt.Errorf("no transport called %q", transport)
	}
	if err != nil {
		return nil, err
	}
	go p.read()
	return p, nil
}

func (p *player) leave() { p.client.Disconnect() }

// read ends with the program: the client never closes its channel.
func (p *player) read() {
	for received := range p.client.MsgChannel() {
		if received.Type == message.Push {
			select {
			case p.pushes <- received:
			default:
			}
			continue
		}
		p.answer(received.ID) <- received
	}
}

// answer is where the answer to a request arrives; it may come before the request's sender knows the id.
func (p *player) answer(id uint) chan *message.Message {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if _, isKnown := p.answers[id]; !isKnown {
		p.answers[id] = make(chan *message.Message, 1)
	}
	return p.answers[id]
}

// burst sends all requests before it waits for the first answer. The client itself never has more than 30 on the way.
func (p *player) burst(route string, bodies []json.RawMessage) []lines.Event {
	ids := make([]uint, 0, len(bodies))
	for _, body := range bodies {
		id, err := p.client.SendRequest(route, body)
		if err != nil {
			return failAll(len(bodies), err)
		}
		ids = append(ids, id)
	}
	events := make([]lines.Event, 0, len(bodies))
	for _, id := range ids {
		events = append(events, await(p.answer(id)))
		p.mutex.Lock()
		delete(p.answers, id)
		p.mutex.Unlock()
	}
	return events
}

func failAll(count int, err error) []lines.Event {
	events := make([]lines.Event, count)
	for index := range events {
		events[index] = lines.Failed(err)
	}
	return events
}

func (p *player) awaitPush() lines.Event { return await(p.pushes) }

func await(arrives chan *message.Message) lines.Event {
	select {
	case received := <-arrives:
		return messageEvent(received)
	case <-time.After(answerTimeout):
		return lines.Failed(errors.New("nothing arrived in time"))
	}
}

func messageEvent(received *message.Message) lines.Event {
	event := lines.Event{Event: "response", Route: received.Route}
	if json.Valid(received.Data) {
		event.Body = received.Data
	} else {
		event.Hex = hex.EncodeToString(received.Data)
	}
	if received.Type == message.Push {
		event.Event = "push"
	}
	if received.Err {
		var failure struct{ Code, Msg string }
		if err := json.Unmarshal(received.Data, &failure); err != nil {
			return lines.Failed(err)
		}
		event.Event, event.Code, event.Message = "error", failure.Code, failure.Msg
	}
	return event
}

// awaitEnd waits until the client has closed. Kicked says that the client read a kick packet; it looks at a closed
// connection and at packets that came before in no particular order, so it may miss the kick.
func (p *player) awaitEnd() lines.Event {
	for began := time.Now(); p.client.ConnectedStatus(); time.Sleep(pollInterval) {
		if time.Since(began) > answerTimeout {
			return lines.Failed(errors.New("the connection is still open"))
		}
	}
	return lines.Event{Event: "ended", Kicked: p.log.sawKick()}
}

// kickLog reads the client's log, the only place where a kick can be seen.
type kickLog struct {
	mutex  sync.Mutex
	kicked bool
}

func (k *kickLog) install() {
	log := logrus.New()
	log.SetLevel(logrus.WarnLevel)
	log.SetOutput(io.Discard)
	log.AddHook(k)
	logger.Log = logruswrapper.NewWithFieldLogger(log)
}

func (k *kickLog) sawKick() bool {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	return k.kicked
}

// Levels is part of logrus.Hook.
func (k *kickLog) Levels() []logrus.Level { return []logrus.Level{logrus.WarnLevel} }

// Fire is part of logrus.Hook.
func (k *kickLog) Fire(entry *logrus.Entry) error {
	if strings.Contains(entry.Message, "kick") {
		k.mutex.Lock()
		defer k.mutex.Unlock()
		k.kicked = true
	}
	return nil
}
