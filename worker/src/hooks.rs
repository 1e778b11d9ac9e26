//! The functions of an application that run at its start and its end.

use crate::handler::AnyHandler;

/// In the order in which they were given; the two of the end run in reverse, as Pitaya's modules do.
#[derive(Default)]
pub(crate) struct Hooks {
    pub(crate) on_start: Vec<AnyHandler>,
    pub(crate) before_shutdown: Vec<AnyHandler>,
    pub(crate) on_shutdown: Vec<AnyHandler>,
}
