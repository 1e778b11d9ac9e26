//! A gateway in a cluster: real nats-server and etcd, workers of ours, and backends made by hand that speak the
//! cluster's protocol as Go does.
//!
//! Each test of behaviour runs over the ring and over epoll. Waiting is always for something that must come; nothing
//! is slept for.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../support/asking.rs"]
mod asking;
#[path = "../../../shared/tests/servers/fault_proxy.rs"]
mod fault_proxy;
#[path = "../../../shared/tests/servers/mod.rs"]
mod servers;
#[path = "../support/traffic.rs"]
mod traffic;

#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "../support/administrator.rs"]
mod administrator;

mod addresses;
mod backend;
mod bans;
mod batches;
mod bindings;
mod discovery;
mod draining;
mod etcd_faults;
mod examples;
mod fan_out;
mod hostile;
mod hosting;
mod hosting_events;
mod jobs;
mod lifecycle;
mod moving;
mod nats_faults;
mod outages;
mod overload;
mod proxy;
mod requests;
mod routing;
mod security;
mod sessions;
mod storm;
mod unique;
mod watching;
mod window;
mod worker_faults;
mod world;
