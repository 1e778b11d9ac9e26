// Program pitaya-server is a Pitaya server in cluster mode: a backend with the handlers that the tests call, or a
// frontend without any. It writes one JSON line when it is ready, and one for each notify.
//
// Everything that has no flag keeps Pitaya's default, or what its PITAYA_ variables say.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/viper"
	pitaya "github.com/topfreegames/pitaya/v3/pkg"
	"github.com/topfreegames/pitaya/v3/pkg/acceptor"
	"github.com/topfreegames/pitaya/v3/pkg/component"
	"github.com/topfreegames/pitaya/v3/pkg/config"
	logruswrapper "github.com/topfreegames/pitaya/v3/pkg/logger/logrus"

	"dragonfruit/interop/pitaya/lines"
)

const pollInterval = 5 * time.Millisecond

type options struct {
	isFrontend   bool
	kind         string
	frontendType string
	tcp          string
	ws           string
	nats         string
	etcd         string
	prefix       string
	compression  bool
	unique       bool
	logLevel     string
	untilEOF     bool
}

func parseOptions() options {
	var o options
	flag.BoolVar(&o.isFrontend, "frontend", false, "serve clients")
	flag.StringVar(&o.kind, "type", "room", "server type")
	flag.StringVar(&o.frontendType, "frontend-type", "connector", "where the users of test.push are connected")
	flag.StringVar(&o.tcp, "tcp", "127.0.0.1:0", "address of a frontend's TCP acceptor; empty for none")
	flag.StringVar(&o.ws, "ws", "", "address of a frontend's WebSocket acceptor; empty for none")
	flag.StringVar(&o.nats, "nats", "nats://127.0.0.1:4222", "URL of the NATS server")
	flag.StringVar(&o.etcd, "etcd", "127.0.0.1:2379", "address of etcd")
	flag.StringVar(&o.prefix, "prefix", "pitaya/", "prefix of the keys in etcd")
	flag.BoolVar(&o.compression, "compression", true, "compress messages to clients")
	flag.BoolVar(&o.unique, "unique", true, "one session a user")
	flag.StringVar(&o.logLevel, "log", "fatal", "least severe level that is logged")
	flag.BoolVar(&o.untilEOF, "until-eof", false, "stop when standard input ends")
	flag.Parse()
	return o
}

func main() {
	if err := run(parseOptions()); err != nil {
		fmt.Fprintln(os.Stderr, "pitaya-server:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	level, err := logrus.ParseLevel(o.logLevel)
	if err != nil {
		return err
	}
	log := logrus.New()
	log.SetLevel(level)
	pitaya.SetLogger(logruswrapper.NewWithFieldLogger(log))

	builder := pitaya.NewBuilderWithConfigs(o.isFrontend, o.kind, pitaya.Cluster, map[string]string{}, o.config())
	acceptors := o.addAcceptors(builder)
	app := builder.Build()
	events := lines.NewWriter(os.Stdout)
	// A frontend only forwards, as the gateway does.
	if !o.isFrontend {
		app.Register(
			&TestHandlers{app: app, events: events, frontendType: o.frontendType},
			component.WithName("test"),
			component.WithNameFunc(lowerFirst),
		)
	}
	go announce(app, builder.Server.ID, acceptors, events)
	if o.untilEOF {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			app.Shutdown()
		}()
	}
	app.Start()
	return nil
}

func (o options) config() *config.Config {
	keys := viper.New()
	keys.Set("pitaya.cluster.sd.etcd.prefix", o.prefix)
	keys.Set("pitaya.cluster.sd.etcd.endpoints", []string{o.etcd})
	keys.Set("pitaya.cluster.rpc.client.nats.connect", o.nats)
	keys.Set("pitaya.cluster.rpc.server.nats.connect", o.nats)
	keys.Set("pitaya.handler.messages.compression", o.compression)
	keys.Set("pitaya.session.unique", o.unique)
	return config.NewConfig(keys)
}

// acceptors are the listening addresses of a frontend, known once it runs.
type acceptors struct{ tcp, ws acceptor.Acceptor }

func (o options) addAcceptors(builder *pitaya.Builder) acceptors {
	var added acceptors
	if o.isFrontend && o.tcp != "" {
		added.tcp = acceptor.NewTCPAcceptor(o.tcp)
		builder.AddAcceptor(added.tcp)
	}
	if o.isFrontend && o.ws != "" {
		added.ws = acceptor.NewWSAcceptor(o.ws)
		builder.AddAcceptor(added.ws)
	}
	return added
}

// announce writes the ready line when all modules run: the server is then in etcd and listens.
func announce(app pitaya.Pitaya, id string, added acceptors, events *lines.Writer) {
	for !app.IsRunning() {
		time.Sleep(pollInterval)
	}
	ready := lines.Event{Event: "ready", ID: id}
	if added.tcp != nil {
		ready.Address = added.tcp.GetAddr()
	}
	if added.ws != nil {
		ready.WS = added.ws.GetAddr()
	}
	events.Write(ready)
}
