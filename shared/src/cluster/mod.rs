//! What the control thread runs to live in a cluster: the etcd client and the service discovery on top of it.
//!
//! Everything here needs tokio and none of it is on the hot path: reactors read the tables that come out of it.

pub mod ban_keeper;
pub mod discovery;
pub mod etcd;
mod follower;
mod registration;
mod retry;
pub mod table_builder;
