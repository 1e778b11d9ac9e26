package main

// A member of the cluster: its two NATS connections, its entry in etcd, and what it knows of the others.

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	etcdPrefix     = "pitaya/servers/"
	leaseSeconds   = 10
	startTimeout   = 10 * time.Second
	requestTimeout = 5 * time.Second
	watchTimeout   = time.Second
	// The channel that Pitaya reads its server subscription through; a message that does not fit is dropped.
	queueMessages = 75
)

type nodeOptions struct {
	natsURL      string
	etcdEndpoint string
	kind         string
	flavor       string
	isFrontend   bool
}

// serverRecord is the value of a server in etcd, its members in the order in which Pitaya writes them.
type serverRecord struct {
	ID         string            `json:"id"`
	Type       string            `json:"type"`
	Metadata   map[string]string `json:"metadata"`
	IsFrontend bool              `json:"frontend"`
	Hostname   string            `json:"hostname"`
}

func (s serverRecord) subject() string { return "pitaya/servers/" + s.Type + "/" + s.ID }

type node struct {
	nodeOptions
	id string
	// One connection calls, the other one serves, as in Pitaya: an answer may overtake a push.
	calling *nats.Conn
	serving *nats.Conn
	etcd    *clientv3.Client
	lease   clientv3.LeaseID

	mutex   sync.Mutex
	servers map[string]serverRecord

	stop    context.CancelFunc
	stopped sync.WaitGroup
}

func newIdentity() string {
	random := make([]byte, 16)
	if _, err := rand.Read(random); err != nil {
		panic(err)
	}
	random[6], random[8] = random[6]&0x0f|0x40, random[8]&0x3f|0x80
	text := hex.EncodeToString(random)
	return strings.Join([]string{text[:8], text[8:12], text[12:16], text[16:20], text[20:]}, "-")
}

// joinCluster connects and subscribes; handle is called for each request, on its own goroutine. The node is visible to
// others when this returns.
func joinCluster(parent context.Context, options nodeOptions, handle func(request) response) (*node, error) {
	if options.kind == "" || options.natsURL == "" || options.etcdEndpoint == "" {
		return nil, errors.New("--type, --nats and --etcd are all needed")
	}
	if options.flavor != "v2" && options.flavor != "v3" {
		return nil, fmt.Errorf("no flavor called %q", options.flavor)
	}
	background, stop := context.WithCancel(parent)
	n := &node{nodeOptions: options, id: newIdentity(), servers: map[string]serverRecord{}, stop: stop}
	start, cancel := context.WithTimeout(parent, startTimeout)
	defer cancel()
	err := n.connect()
	if err == nil {
		err = n.serve(background, handle)
	}
	if err == nil {
		err = n.register(start, background)
	}
	if err != nil {
		n.leave()
		return nil, err
	}
	return n, nil
}

func (n *node) connect() (err error) {
	if n.calling, err = nats.Connect(n.natsURL, nats.Timeout(startTimeout)); err != nil {
		return fmt.Errorf("nats: %w", err)
	}
	if n.serving, err = nats.Connect(n.natsURL, nats.Timeout(startTimeout)); err != nil {
		return fmt.Errorf("nats: %w", err)
	}
	n.etcd, err = clientv3.New(clientv3.Config{Endpoints: []string{n.etcdEndpoint}, DialTimeout: startTimeout})
	return err
}

func (n *node) record() serverRecord {
	hostname, _ := os.Hostname()
	return serverRecord{ID: n.id, Type: n.kind, Metadata: map[string]string{}, IsFrontend: n.isFrontend, Hostname: hostname}
}

func (n *node) serve(background context.Context, handle func(request) response) error {
	requests := make(chan *nats.Msg, queueMessages)
	if _, err := n.serving.ChanSubscribe(n.record().subject(), requests); err != nil {
		return err
	}
	n.stopped.Add(1)
	go func() {
		defer n.stopped.Done()
		for {
			select {
			case <-background.Done():
				return
			case received := <-requests:
				go n.answer(received, handle)
			}
		}
	}()
	return n.serving.Flush()
}

func (n *node) answer(received *nats.Msg, handle func(request) response) {
	decoded, err := decodeRequest(received.Data)
	if err != nil || decoded.message == nil {
		return // Pitaya drops these too, and the caller runs into its timeout
	}
	answer := checkMetadata(decoded.metadata)
	if answer == nil {
		handled := handle(decoded)
		answer = &handled
	}
	_ = n.serving.Publish(received.Reply, answer.encode())
}

// checkMetadata is the check that every receiver of Pitaya makes; nil means that all is well (cluster protocol 5.3).
func checkMetadata(metadata []byte) *response {
	fail := func(text string) *response { return &response{err: &callError{code: "PIT-500", text: text}} }
	if len(metadata) == 0 {
		return fail("no context found")
	}
	var members map[string]any
	if err := json.Unmarshal(metadata, &members); err != nil {
		return fail(err.Error())
	}
	if members == nil {
		return fail("metadata is null, which would end a Pitaya process")
	}
	value, isThere := members["reqTimeout"]
	text, isText := value.(string)
	if isThere && !isText {
		return fail("reqTimeout is not a string, which would end a Pitaya process")
	}
	if isThere {
		if _, err := time.ParseDuration(text); err != nil {
			return fail(err.Error())
		}
	}
	return nil
}

func (n *node) register(start, background context.Context) error {
	lease, err := n.etcd.Grant(start, leaseSeconds)
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	n.lease = lease.ID
	renewals, err := n.etcd.KeepAlive(background, lease.ID)
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	value, err := json.Marshal(n.record())
	if err != nil {
		return err
	}
	if _, err = n.etcd.Put(start, etcdPrefix+n.kind+"/"+n.id, string(value), clientv3.WithLease(lease.ID)); err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	listed, err := n.etcd.Get(start, etcdPrefix, clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	for _, entry := range listed.Kvs {
		n.addServer(entry.Value)
	}
	n.stopped.Add(1)
	go n.follow(background, listed.Header.Revision+1, renewals)
	return nil
}

func (n *node) follow(background context.Context, revision int64, renewals <-chan *clientv3.LeaseKeepAliveResponse) {
	defer n.stopped.Done()
	changes := n.etcd.Watch(background, etcdPrefix, clientv3.WithPrefix(), clientv3.WithRev(revision))
	for {
		select {
		case <-background.Done():
			return
		case _, isOpen := <-renewals:
			if !isOpen {
				renewals = nil // lost; the tests that need more than one lease start a new node
			}
		case change, isOpen := <-changes:
			if !isOpen {
				return
			}
			for _, happened := range change.Events {
				n.apply(happened)
			}
		}
	}
}

func (n *node) apply(happened *clientv3.Event) {
	if happened.Type == clientv3.EventTypePut {
		n.addServer(happened.Kv.Value)
		return
	}
	parts := strings.Split(strings.TrimPrefix(string(happened.Kv.Key), etcdPrefix), "/")
	n.mutex.Lock()
	defer n.mutex.Unlock()
	delete(n.servers, parts[len(parts)-1])
}

// addServer keeps the first value of an id, as Pitaya does, and skips what it cannot read.
func (n *node) addServer(value []byte) {
	var record serverRecord
	if json.Unmarshal(value, &record) != nil || record.ID == "" {
		return
	}
	n.mutex.Lock()
	defer n.mutex.Unlock()
	if _, isKnown := n.servers[record.ID]; !isKnown {
		n.servers[record.ID] = record
	}
}

// serverByID gives the watch a moment: a frontend that has just registered may call before its entry has arrived here.
// Pitaya answers with the error at once.
func (n *node) serverByID(id string) (serverRecord, error) {
	for deadline := time.Now().Add(watchTimeout); ; time.Sleep(watchTimeout / 100) {
		n.mutex.Lock()
		record, isKnown := n.servers[id]
		n.mutex.Unlock()
		if isKnown {
			return record, nil
		}
		if time.Now().After(deadline) {
			return record, errors.New("can't find any server with the provided ID")
		}
	}
}

func (n *node) serverOfType(kind string) (serverRecord, error) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	var candidates []serverRecord
	for _, record := range n.servers {
		if record.Type == kind {
			candidates = append(candidates, record)
		}
	}
	if len(candidates) == 0 {
		return serverRecord{}, &callError{code: "PIT-500", text: "no servers available of this type"}
	}
	return candidates[mathrand.Intn(len(candidates))], nil
}

// metadata builds the members that this flavor of Pitaya sends.
func (n *node) metadata(route string) []byte {
	members := map[string]any{
		"peer.id":        n.id,
		"peer.service":   n.kind,
		"req-route":      route,
		"req-start-time": time.Now().UnixNano(),
		"reqTimeout":     requestTimeout.String(),
		"request.id":     newIdentity(),
	}
	if n.flavor == "v2" {
		members["opentracing-span"] = map[string]string{}
	}
	text, err := json.Marshal(members)
	if err != nil {
		panic(err) // strings and numbers always encode
	}
	return text
}

// call sends a request and waits for its answer; a failure is always a *callError.
func (n *node) call(target serverRecord, outgoing request) ([]byte, *callError) {
	outgoing.metadata = n.metadata(outgoing.message.route)
	if n.isFrontend {
		outgoing.frontendID = n.id
	}
	received, err := n.calling.Request(target.subject(), outgoing.encode(), requestTimeout)
	if errors.Is(err, nats.ErrTimeout) {
		return nil, &callError{code: "PIT-408", text: "rpc client: request timeout"}
	}
	if err != nil {
		return nil, &callError{code: "PIT-000", text: err.Error()}
	}
	answer, err := decodeResponse(received.Data)
	if err != nil {
		return nil, &callError{code: "PIT-500", text: err.Error()}
	}
	if answer.err != nil {
		return nil, answer.err
	}
	return answer.data, nil
}

// callUser makes a user RPC: its argument and its result are protobuf, and it carries no session.
func (n *node) callUser(target serverRecord, route string, argument []byte) ([]byte, *callError) {
	return n.call(target, request{rpc: rpcUser, message: &callMessage{route: route, data: argument}})
}

// leave takes the node out of the discovery first, then closes everything.
func (n *node) leave() {
	if n.etcd != nil && n.lease != 0 {
		bounded, cancel := context.WithTimeout(context.Background(), requestTimeout)
		_, _ = n.etcd.Revoke(bounded, n.lease)
		cancel()
	}
	n.stop()
	n.stopped.Wait()
	for _, connection := range []*nats.Conn{n.serving, n.calling} {
		if connection != nil {
			connection.Close()
		}
	}
	if n.etcd != nil {
		_ = n.etcd.Close()
	}
}

func asCallError(err error) *callError {
	var failure *callError
	if errors.As(err, &failure) {
		return failure
	}
	return &callError{code: "PIT-000", text: err.Error()}
}
