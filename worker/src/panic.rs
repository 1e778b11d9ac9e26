//! What a caller is told about a panic.

use std::any::Any;

use crate::error::Error;

/// Pitaya's texts (sessions and handlers 6.5): a panic's own text if it has one.
pub(crate) fn error_of_panic(panic: &(dyn Any + Send), method: &str) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    match text {
        Some(text) => Error::unknown(text),
        None => {
            Error::unknown(format!("rpc call internal error - {method}: {:?}", panic.type_id()))
        }
    }
}
