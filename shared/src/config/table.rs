//! The one table of all configuration keys.
//!
//! Defaults are those of Pitaya's documentation; where its code differs the documentation wins, except for the
//! pause after leaving etcd, which as documented is shorter than a watch takes to spread. Reconnecting never gives up,
//! and NATS is asked for signs of life often enough to notice a dead node within a minute.

use std::time::Duration;

use super::key::Kind::{
    Address, Addresses, Bool, Choice, CustomMetrics, Dictionary, Float, Int, List, Map, Path,
    Policies, Secret, ServerName, Text, Urls,
};
use super::key::UsedBy::{Both, Gateway, Worker};
use super::key::{Key, Kind, row};

const DAY_S: u64 = 86_400;
const MS: u64 = 1;
const SECOND: u64 = 1_000 * MS;
const HOUR: u64 = 3_600 * SECOND;

const fn time(min_ms: u64, max_ms: u64) -> Kind {
    Kind::Duration { min: Duration::from_millis(min_ms), max: Duration::from_millis(max_ms) }
}

/// A limit on waiting for a peer.
const TIMEOUT: Kind = time(10 * MS, HOUR);
/// A pause or period that may be switched off with 0.
const PAUSE: Kind = time(0, 24 * HOUR);
const PERIOD: Kind = time(100 * MS, 24 * HOUR);
const PORT: Kind = Int { min: 0, max: 65_535, unit: "TCP port" };
/// Pitaya counts packets and messages in many queues; a million of either is far beyond use.
const QUEUE: Kind = Int { min: 1, max: 1_000_000, unit: "messages" };

/// A rate; 0 means that there is no limit.
const RATE: Kind = Int { min: 0, max: 1_000_000, unit: "a second; 0 = no limit" };
/// Loopback, private and link-local addresses (RFC 1918, 3927, 4193, 4291, 6598).
const PRIVATE_NETWORKS: &str = "127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,169.254.0.0/16,100.64.0.0/10,\
                                ::1,fc00::/7,fe80::/10";

const URLS: Kind = Urls { may_be_empty: false };

const fn count(min: i64, max: i64) -> Kind {
    Int { min, max, unit: "" }
}

const fn bytes(min: i64, max: i64) -> Kind {
    Int { min, max, unit: "bytes" }
}

const fn seconds(min: i64, max: i64) -> Kind {
    Int { min, max, unit: "seconds" }
}

/// As in the Go client of NATS, any negative number has no end.
const RETRIES: Kind = Int { min: -1_000_000, max: 1_000_000, unit: "negative = without end" };

/// All keys, those of Pitaya first.
#[rustfmt::skip]
pub static KEYS: &[Key] = &[
    // Service discovery.
    row(Both, "pitaya.cluster.sd.etcd.endpoints", URLS, "localhost:2379", "etcd addresses; the scheme may be left out."),
    row(Both, "pitaya.cluster.sd.etcd.user", Text, "", "etcd user; only used together with a password."),
    row(Both, "pitaya.cluster.sd.etcd.pass", Secret, "", "etcd password."),
    row(Both, "pitaya.cluster.sd.etcd.dialtimeout", TIMEOUT, "5s", "Limit for connecting to etcd and for one lease."),
    row(Both, "pitaya.cluster.sd.etcd.prefix", Text, "pitaya/", "Prefix of all etcd keys, with its trailing slash."),
    row(Both, "pitaya.cluster.sd.etcd.heartbeat.ttl", time(SECOND, HOUR), "60s",
        "Lease of this server's entry: how long a crashed server stays visible."),
    row(Both, "pitaya.cluster.sd.etcd.heartbeat.log", Bool, "false", "Log each renewal of the lease at level debug."),
    row(Both, "pitaya.cluster.sd.etcd.grantlease.timeout", TIMEOUT, "60s", "Limit for registering again after a lost lease."),
    row(Both, "pitaya.cluster.sd.etcd.grantlease.maxretries", RETRIES, "-1",
        "Attempts to register again. Pitaya gives up after 15 and stops."),
    row(Both, "pitaya.cluster.sd.etcd.grantlease.retryinterval", PERIOD, "5s", "Pause between these attempts."),
    row(Both, "pitaya.cluster.sd.etcd.revoke.timeout", TIMEOUT, "5s", "Limit for taking the entry back at shutdown."),
    row(Both, "pitaya.cluster.sd.etcd.syncservers.interval", PERIOD, "120s", "How often the whole list of servers is read again."),
    row(Both, "pitaya.cluster.sd.etcd.syncservers.parallelism", count(1, 1_000), "10",
        "Accepted for Pitaya's sake: the list is read in one request here.")
        .aliases(&["pitaya.cluster.sd.etcd.syncserversparallelism"]),
    row(Both, "pitaya.cluster.sd.etcd.shutdown.delay", PAUSE, "300ms", "Pause after leaving etcd, for others to notice."),
    row(Both, "pitaya.cluster.sd.etcd.servertypesblacklist", List, "", "Server types to ignore.")
        .aliases(&["pitaya.cluster.sd.etcd.servertypeblacklist"]),

    // RPC over NATS: the connection that calls, then the connection that serves.
    row(Both, "pitaya.cluster.rpc.client.nats.connect", URLS, "nats://localhost:4222", "NATS URLs for calling others."),
    row(Both, "pitaya.cluster.rpc.client.nats.connectiontimeout", TIMEOUT, "5s", "Limit for connecting."),
    row(Both, "pitaya.cluster.rpc.client.nats.requesttimeout", TIMEOUT, "5s", "Limit for one call."),
    row(Both, "pitaya.cluster.rpc.client.nats.maxreconnectionretries", RETRIES, "-1",
        "Attempts to connect again. Pitaya gives up after 15 and stops."),
    row(Both, "pitaya.cluster.rpc.client.nats.websocketcompression", Bool, "true",
        "Accepted for Pitaya's sake: NATS over WebSocket is not offered."),
    row(Both, "pitaya.cluster.rpc.client.nats.reconnectjitter", PAUSE, "100ms", "Random part of the pause before connecting again."),
    row(Both, "pitaya.cluster.rpc.client.nats.reconnectjittertls", PAUSE, "1s", "The same for TLS."),
    row(Both, "pitaya.cluster.rpc.client.nats.reconnectwait", time(MS, HOUR), "1s", "Pause after all URLs were tried."),
    row(Both, "pitaya.cluster.rpc.client.nats.pinginterval", time(SECOND, HOUR), "20s", "How often NATS is asked for a sign of life."),
    row(Both, "pitaya.cluster.rpc.client.nats.maxpingsoutstanding", count(1, 100), "3", "Unanswered asks before connecting again."),
    row(Both, "pitaya.cluster.rpc.server.nats.connect", URLS, "nats://localhost:4222", "NATS URLs for being called."),
    row(Both, "pitaya.cluster.rpc.server.nats.connectiontimeout", TIMEOUT, "5s", "Limit for connecting."),
    row(Both, "pitaya.cluster.rpc.server.nats.maxreconnectionretries", RETRIES, "-1",
        "Attempts to connect again. Pitaya gives up after 15 and stops."),
    row(Both, "pitaya.cluster.rpc.server.nats.websocketcompression", Bool, "true",
        "Accepted for Pitaya's sake: NATS over WebSocket is not offered."),
    row(Both, "pitaya.cluster.rpc.server.nats.reconnectjitter", PAUSE, "100ms", "Random part of the pause before connecting again."),
    row(Both, "pitaya.cluster.rpc.server.nats.reconnectjittertls", PAUSE, "1s", "The same for TLS."),
    row(Both, "pitaya.cluster.rpc.server.nats.reconnectwait", time(MS, HOUR), "1s", "Pause after all URLs were tried."),
    row(Both, "pitaya.cluster.rpc.server.nats.pinginterval", time(SECOND, HOUR), "20s", "How often NATS is asked for a sign of life."),
    row(Both, "pitaya.cluster.rpc.server.nats.maxpingsoutstanding", count(1, 100), "3", "Unanswered asks before connecting again."),
    row(Both, "pitaya.cluster.rpc.server.nats.buffer.messages", QUEUE, "75",
        "Accepted for Pitaya's sake: pitaya.handler.queue.maxrequests bounds waiting calls."),
    row(Both, "pitaya.cluster.rpc.server.nats.buffer.push", QUEUE, "100",
        "Accepted for Pitaya's sake: pushes are bounded in bytes for each client here."),
    row(Both, "pitaya.cluster.rpc.server.nats.services", count(1, 1_000_000), "30",
        "Accepted for Pitaya's sake: pitaya.handler.concurrency bounds running handlers."),
    row(Worker, "pitaya.cluster.rpc.server.loopbackenabled", Bool, "false", "Allow calls to the own type or id, run in this process."),

    // RPC over gRPC.
    row(Both, "pitaya.cluster.rpc.client.grpc.dialtimeout", TIMEOUT, "5s", "Limit for connecting."),
    row(Both, "pitaya.cluster.rpc.client.grpc.lazyconnection", Bool, "false", "Connect at the first call only."),
    row(Both, "pitaya.cluster.rpc.client.grpc.requesttimeout", TIMEOUT, "5s", "Limit for one call."),
    row(Both, "pitaya.cluster.rpc.server.grpc.port", PORT, "3434", "Listening port, on all addresses."),
    row(Both, "pitaya.cluster.rpc.transport", Choice(&["nats", "grpc"]), "nats",
        "How servers call each other; all servers of a cluster must choose the same."),
    row(Both, "pitaya.cluster.rpc.server.grpc.host", Text, "", "Host that others are told to call; empty means the name of this machine."),
    row(Both, "pitaya.cluster.rpc.server.grpc.externalhost", Text, "", "Host for servers of other regions; empty means none."),
    row(Both, "pitaya.cluster.rpc.server.grpc.externalport", PORT, "0", "Port there; 0 means the same as here."),
    row(Both, "pitaya.cluster.info.region", Text, "", "Own region: servers in another one are called at their external address."),

    // Jobs over Redis.
    row(Both, "pitaya.worker.redis.serverurl", Address, "localhost:6379", "Redis as host:port, without a scheme.")
        .aliases(&["pitaya.worker.redis.url"]),
    row(Worker, "pitaya.worker.redis.pool", count(1, 10_000), "10", "Connections to Redis."),
    row(Both, "pitaya.worker.redis.password", Secret, "", "Redis password."),
    row(Both, "pitaya.worker.namespace", Text, "", "Prefix of all Redis keys."),
    row(Both, "pitaya.worker.concurrency", count(1, 100_000), "1", "Jobs at the same time."),
    row(Both, "pitaya.worker.retry.enabled", Bool, "true", "Try failed jobs again."),
    row(Both, "pitaya.worker.retry.max", count(0, 1_000), "5", "How often."),
    row(Both, "pitaya.worker.retry.exponential", count(0, 20), "2", "Exponent of the attempt's number in the delay."),
    row(Both, "pitaya.worker.retry.mindelay", seconds(0, DAY_S as i64), "0", "Added to each delay."),
    row(Both, "pitaya.worker.retry.maxdelay", seconds(0, DAY_S as i64), "10", "Longest delay."),
    row(Both, "pitaya.worker.retry.maxrandom", seconds(0, DAY_S as i64), "10", "Random part of the delay."),

    // Clients and handlers.
    row(Both, "pitaya.serializertype", Int { min: 1, max: 2, unit: "1 = JSON, 2 = protobuf" }, "1", "Serializer of payloads and errors."),
    row(Gateway, "pitaya.handler.messages.compression", Bool, "true", "Compress messages to clients when that makes them shorter."),
    row(Gateway, "pitaya.heartbeat.interval", Kind::WholeSeconds { min_s: 1, max_s: 3_600 }, "30s",
        "Heartbeats in both directions; a client that is silent for two intervals is dropped."),
    row(Gateway, "pitaya.acceptor.proxyprotocol", Bool, "false", "Expect a PROXY protocol header, version 1 or 2, on each client connection; only trusted proxies may connect then."),
    row(Gateway, "pitaya.conn.ratelimiting.interval", time(MS, HOUR), "1s", "Window of the rate limit.").live(),
    row(Gateway, "pitaya.conn.ratelimiting.limit", Int { min: 1, max: 10_000, unit: "packets" }, "20",
        "Packets of one connection in a window; more are dropped without an answer.")
        .hint("to switch the limit off set pitaya.conn.ratelimiting.forcedisable to true").live(),
    row(Gateway, "pitaya.conn.ratelimiting.forcedisable", Bool, "false", "Switch the rate limit off.").live(),
    row(Gateway, "pitaya.buffer.agent.messages", QUEUE, "100",
        "Packets queued to one client; pitaya.gateway.outbox.maxbytes bounds them in bytes as well."),
    row(Gateway, "pitaya.buffer.agent.conntimeout", TIMEOUT, "10s",
        "Limit for writing to a client, which is closed then.")
        .aliases(&["pitaya.buffer.agent.writetimeout"]).live(),
    row(Gateway, "pitaya.buffer.handler.localprocess", QUEUE, "20", "Client messages waiting for handlers in this process."),
    row(Gateway, "pitaya.buffer.handler.remoteprocess", QUEUE, "20",
        "Accepted for Pitaya's sake: pitaya.gateway.queue.maxrequests bounds what waits to be forwarded."),
    row(Gateway, "pitaya.concurrency.handler.dispatch", count(1, 1_000_000), "25",
        "Accepted for Pitaya's sake: pitaya.gateway.inflight.target bounds requests in flight."),
    row(Gateway, "pitaya.session.unique", Bool, "true", "One session for each uid among the frontends of a type."),
    row(Gateway, "pitaya.session.drain.enabled", Bool, "false", "Wait after SIGTERM until the players have left; nobody is let in meanwhile."),
    row(Gateway, "pitaya.session.drain.timeout", time(0, 30 * 24 * HOUR), "6h", "Longest such wait."),
    row(Gateway, "pitaya.session.drain.period", time(10 * MS, HOUR), "5s", "How often it is checked."),
    row(Worker, "pitaya.defaultpipelines.structvalidation.enabled", Bool, "false", "Validate the arguments of handlers."),

    // Modules and groups.
    row(Gateway, "pitaya.modules.bindingstorage.enabled", Bool, "false",
        "Write to etcd which frontend holds which user; always on where the transport is grpc, which finds users by it."),
    row(Both, "pitaya.modules.bindingstorage.etcd.user", Text, "", "etcd user; only used together with a password."),
    row(Both, "pitaya.modules.bindingstorage.etcd.pass", Secret, "", "etcd password."),
    row(Both, "pitaya.modules.bindingstorage.etcd.endpoints", URLS, "localhost:2379", "etcd of the binding storage."),
    row(Both, "pitaya.modules.bindingstorage.etcd.prefix", Text, "pitaya/", "Prefix of its keys."),
    row(Both, "pitaya.modules.bindingstorage.etcd.dialtimeout", TIMEOUT, "5s", "Limit for connecting to it."),
    row(Gateway, "pitaya.modules.bindingstorage.etcd.leasettl", time(SECOND, 30 * 24 * HOUR), "1h",
        "How long the bindings of a crashed frontend stay."),
    row(Worker, "pitaya.groups.storage", Choice(&["memory", "etcd"]), "memory",
        "Where groups are kept: in each worker's memory, or in etcd for all of them."),
    row(Worker, "pitaya.groups.etcd.endpoints", URLS, "localhost:2379", "etcd of the groups."),
    row(Worker, "pitaya.groups.etcd.user", Text, "", "etcd user; only used together with a password."),
    row(Worker, "pitaya.groups.etcd.pass", Secret, "", "etcd password."),
    row(Worker, "pitaya.groups.etcd.prefix", Text, "pitaya/", "Prefix of their keys."),
    row(Worker, "pitaya.groups.etcd.dialtimeout", TIMEOUT, "5s", "Limit for connecting to it."),
    row(Worker, "pitaya.groups.etcd.transactiontimeout", TIMEOUT, "5s", "Limit for one operation."),
    row(Worker, "pitaya.groups.memory.tickduration", PERIOD, "30s", "How often groups in memory are checked for expiry."),

    // Metrics.
    row(Both, "pitaya.metrics.period", PERIOD, "15s", "How often the process and its queues are sampled."),
    row(Both, "pitaya.metrics.game", Text, "", "Constant label game."),
    row(Both, "pitaya.metrics.constlabels", Map, "", "Further constant labels.").aliases(&["pitaya.metrics.consttags"]),
    row(Both, "pitaya.metrics.additionallabels", Map, "", "Labels that requests may set, with their default values.")
        .aliases(&["pitaya.metrics.additionaltags", "pitaya.metrics.prometheus.additionaltags"]),
    row(Both, "pitaya.metrics.prometheus.enabled", Bool, "false", "Serve /metrics."),
    row(Both, "pitaya.metrics.prometheus.port", PORT, "9090", "Its port, on all addresses."),
    row(Both, "pitaya.metrics.statsd.enabled", Bool, "false", "Send metrics to statsd."),
    row(Both, "pitaya.metrics.statsd.host", Address, "localhost:9125", "Its address."),
    row(Both, "pitaya.metrics.statsd.prefix", Text, "pitaya.", "Prefix of the names, with its dot."),
    row(Both, "pitaya.metrics.statsd.rate", Float { min: 0.0, max: 1.0 }, "1", "Share of the values that is sent."),
    row(Both, "pitaya.metrics.custom", CustomMetrics, "", "Metrics of the application: lists counters, gauges, summaries, histograms."),

    // Ours: the process.
    row(Both, "pitaya.mode", Choice(&["cluster", "standalone"]), "cluster", "With NATS and etcd, or everything in one process."),
    row(Both, "pitaya.server.type", ServerName { may_be_empty: false }, "connector", "Type of this server in the cluster.")
        .worker_default("room"),
    row(Both, "pitaya.server.id", ServerName { may_be_empty: true }, "", "Id of this server; empty means a random one."),
    row(Both, "pitaya.server.metadata", Map, "", "What others see of this server in service discovery."),
    row(Both, "pitaya.routing", Policies, "",
        "How a server is chosen for a forwarded message or a call, by server type; default stands for all other types."),
    row(Both, "pitaya.admin.listen", Addresses, "127.0.0.1:9091",
        "Health and administration; /healthz and /readyz are on the metrics port too.")
        .worker_default("127.0.0.1:9092"),
    row(Gateway, "pitaya.admin.token", Secret, "",
        "What administrators show as a bearer token to reload and to ban; without one only this machine may."),
    row(Both, "pitaya.log.level", Text, "info", "A level, or levels by module as in gateway=debug,info.").live(),
    row(Both, "pitaya.log.format", Choice(&["auto", "text", "json"]), "auto", "auto is text on a terminal and JSON elsewhere."),

    // Ours: NATS.
    row(Both, "pitaya.nats.connect", Urls { may_be_empty: true }, "", "Short form that sets both NATS URL lists."),
    row(Both, "pitaya.nats.user", Text, "", "NATS user."),
    row(Both, "pitaya.nats.password", Secret, "", "NATS password."),
    row(Both, "pitaya.nats.token", Secret, "", "NATS token."),
    row(Both, "pitaya.nats.nkey", Secret, "", "NATS nkey seed."),
    row(Both, "pitaya.nats.credentials", Secret, "", "Text of a NATS credentials file, with a JWT and a seed."),
    row(Both, "pitaya.nats.tls.ca", Path, "", "Certificates to trust, as PEM; empty means those of the system."),
    row(Both, "pitaya.nats.tls.cert", Path, "", "Own certificate, as PEM."),
    row(Both, "pitaya.nats.tls.key", Path, "", "Own private key, as PEM."),
    row(Both, "pitaya.nats.batches", Bool, "true",
        "Requests of one moment to one server of ours travel in one NATS message; a worker announces that it takes them."),

    // Ours: the gateway.
    row(Gateway, "pitaya.gateway.tcp", Addresses, ":3250", "Listening addresses for TCP clients."),
    row(Gateway, "pitaya.gateway.ws", Addresses, ":3251", "Listening addresses for WebSocket clients."),
    row(Gateway, "pitaya.gateway.tls.cert", Path, "",
        "Certificate for clients, as PEM, with its chain; alone it puts TLS on all client ports. Empty means no TLS.").live(),
    row(Gateway, "pitaya.gateway.tls.key", Path, "", "Private key to it, as PEM.").live(),
    row(Gateway, "pitaya.gateway.tls.tcp", Addresses, "off",
        "Listening addresses for TCP clients with TLS; the others stay without."),
    row(Gateway, "pitaya.gateway.tls.ws", Addresses, "off",
        "Listening addresses for WebSocket clients with TLS; the others stay without."),
    row(Gateway, "pitaya.gateway.tls.minversion", Choice(&["1.2", "1.3"]), "1.2", "Oldest version of TLS for clients."),
    row(Gateway, "pitaya.gateway.tls.handshakes", count(1, 1_000_000), "4096",
        "TLS handshakes under way on one reactor; of more the oldest is closed."),
    row(Gateway, "pitaya.gateway.tls.expirydays", Int { min: 0, max: 3_650, unit: "days; 0 = not before the end" }, "14",
        "Days before the certificate's end from which on the log warns, once a day.").live(),
    row(Gateway, "pitaya.gateway.proxy.trusted", List, PRIVATE_NETWORKS,
        "Addresses and networks of proxies that are believed; by default all that are not on the public internet."),
    row(Gateway, "pitaya.gateway.proxy.forwarded", Bool, "false",
        "Believe X-Forwarded-For and X-Real-IP of trusted proxies."),
    row(Gateway, "pitaya.gateway.session.address", Bool, "false",
        "Tell workers each client's address, as ip in the session's data."),
    row(Gateway, "pitaya.gateway.origins", List, "",
        "Origins or hosts of pages that may connect, or same-host; empty means every page, as in Pitaya."),
    row(Gateway, "pitaya.gateway.threads", count(0, 1_024), "0", "Reactors; 0 means one for each core."),
    row(Gateway, "pitaya.gateway.pin", Bool, "true", "Pin each reactor to its core."),
    row(Gateway, "pitaya.gateway.driver", Choice(&["auto", "uring", "epoll"]), "auto", "auto takes io_uring where it is allowed."),
    row(Gateway, "pitaya.gateway.maxconns", count(1, 100_000_000), "1000000", "Connections of this process; more are closed at once.").live(),
    row(Gateway, "pitaya.gateway.accept.rate", RATE, "10000", "Connections taken in a second; more wait their turn in the kernel's queue.").live(),
    row(Gateway, "pitaya.gateway.address.maxconns", Int { min: 0, max: 1_000_000, unit: "connections; 0 = no limit" }, "0",
        "Connections of one address, of IPv6 of one /64. No limit by default, because players behind one carrier or proxy share one.").live(),
    row(Gateway, "pitaya.gateway.address.acceptrate", RATE, "0", "Connections a second of one address; more are closed at once.").live(),
    row(Gateway, "pitaya.gateway.address.rate", RATE, "0",
        "Messages a second of one address, all its connections together; more are answered with PIT-429.").live(),
    row(Gateway, "pitaya.gateway.uid.rate", RATE, "0",
        "Messages a second of one uid, over all its sessions; more are answered with PIT-429.").live(),
    row(Gateway, "pitaya.gateway.routes.rate", Map, "",
        "Messages a second to a full route from everybody together, as route=number; more are answered with PIT-429.").live(),
    row(Gateway, "pitaya.gateway.routes.connectionrate", Map, "", "The same from each connection.").live(),
    row(Gateway, "pitaya.gateway.memory.maxbytes", bytes(0, 1 << 50), "0",
        "Bytes held for all clients; beyond it those with the most are closed. 0 is half of what the process may use.").live(),
    row(Gateway, "pitaya.gateway.memory.processbytes", bytes(0, 1 << 50), "0",
        "Bytes that the process may use; near it new connections wait. 0 is the limit of its container or service, or the machine's memory.").live(),
    row(Gateway, "pitaya.gateway.packet.maxbytes", bytes(1_024, 0xff_ffff), "65536", "Longest packet from a client.").live(),
    row(Gateway, "pitaya.gateway.inflate.maxbytes", bytes(1_024, 1 << 30), "1048576", "Longest payload from a client after inflating.").live(),
    row(Gateway, "pitaya.gateway.handshake.timeout", time(100 * MS, HOUR), "10s", "From accepting to the acknowledged handshake.").live(),
    row(Gateway, "pitaya.gateway.handshake.maxbytes", bytes(256, 65_536), "16384", "Longest handshake from a client.").live(),
    row(Gateway, "pitaya.gateway.outbox.maxbytes", bytes(65_536, 1 << 30), "1048576", "Bytes queued to one client, which is closed beyond.").live(),
    row(Gateway, "pitaya.gateway.outbox.policy", Choice(&["close", "drop"]), "close",
        "What a push without room does: close the client, or be dropped. A client that cannot be answered is closed always.").live(),
    row(Gateway, "pitaya.gateway.compression.threshold", bytes(0, 1 << 24), "128", "Shortest payload that is compressed.").live(),
    row(Gateway, "pitaya.gateway.inflight.target", count(1, 1_000_000), "25",
        "Requests in flight from this process to one server, unless it announces that it takes more.").live(),
    row(Gateway, "pitaya.gateway.inflight.connection", count(1, 1_000_000), "100", "Requests in flight of one client.").live(),
    row(Gateway, "pitaya.gateway.queue.maxrequests", count(0, 10_000_000), "1000",
        "Requests waiting for one server; more are answered with PIT-503.").live(),
    row(Gateway, "pitaya.gateway.queue.maxage", time(MS, HOUR), "500ms",
        "Wait to be expected from which on a request for a busy server type is answered with PIT-503 at once.").live(),
    row(Gateway, "pitaya.gateway.dictionary", Dictionary, "", "Route codes that clients are told."),
    row(Gateway, "pitaya.gateway.dictionary.pushes", Bool, "true", "Use route codes in pushes; libpitaya cannot read them."),
    row(Gateway, "pitaya.gateway.demo", Bool, "false", "Serve the demo page."),

    // Ours: the worker.
    row(Worker, "pitaya.handler.queue.maxrequests", count(1, 10_000_000), "10000",
        "Requests waiting in this process; more are answered with PIT-503."),
    row(Worker, "pitaya.handler.queue.maxage", time(MS, HOUR), "1s",
        "Time that requests wait for a handler to start, from which on further ones are answered with PIT-503 at once."),
    row(Worker, "pitaya.handler.queue.session", count(1, 1_000_000), "100",
        "Requests of one session waiting in this process; more are answered with PIT-503."),
    row(Worker, "pitaya.handler.concurrency", count(1, 1_000_000), "10000", "Handlers running at the same time."),
];
