//! The paths of the gRPC service `protos.Pitaya`, whose methods are all unary (cluster protocol 3 and 12).
//!
//! Only the names: the client and the server that speak them live where the transport is.

/// Full name of the service.
pub const NAME: &str = "protos.Pitaya";
/// [`Request`](crate::Request) to [`Response`](crate::Response): a handler or a remote is called.
pub const METHOD_CALL: &str = "/protos.Pitaya/Call";
/// [`Push`](crate::Push) to [`Response`](crate::Response): a message for one player of a frontend.
pub const METHOD_PUSH: &str = "/protos.Pitaya/PushToUser";
/// [`BindMsg`](crate::BindMsg) to [`Response`](crate::Response): another frontend has bound a user.
pub const METHOD_BIND: &str = "/protos.Pitaya/SessionBindRemote";
/// [`KickMsg`](crate::KickMsg) to [`KickAnswer`](crate::KickAnswer): a player is to be disconnected.
pub const METHOD_KICK: &str = "/protos.Pitaya/KickUser";
