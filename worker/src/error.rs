//! What a handler answers when it fails: a code, a text and metadata, as the player's client receives them.
//!
//! [`Error`] deliberately does not implement `std::error::Error`: only so can `?` turn every error of the standard
//! kind into one. An error that carries Pitaya's code somewhere in its chain of sources keeps that code.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;

use shared::error::code;

/// The result of a handler; see [`Error`] for what `?` makes of other errors.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure as the other side sees it.
///
/// `?` on any standard error gives `PIT-000` with its text, the code of an error without a code (cluster protocol
/// 5.3). Use [`bail!`](crate::bail) or [`ResultExt::code`] to give one of your own.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    /// `PIT-xxx` or a code of the application; an empty one is read as `PIT-000` by the other side.
    pub code: Cow<'static, str>,
    /// The text for the client.
    pub msg: String,
    /// Anything else the client should know, sorted by key.
    pub metadata: BTreeMap<String, String>,
}

impl Error {
    /// An error with a code.
    pub fn new(code: impl Into<Cow<'static, str>>, msg: impl Into<String>) -> Self {
        Self { code: code.into(), msg: msg.into(), metadata: BTreeMap::new() }
    }

    /// An error without a code of its own: `PIT-000`.
    pub fn unknown(msg: impl Into<String>) -> Self {
        Self::new(code::UNKNOWN, msg)
    }

    /// Gives the error this code, unless it already has one of its own (anything but `PIT-000`): as in Pitaya, what
    /// failed first knows best.
    pub fn code(mut self, code: impl Into<Cow<'static, str>>) -> Self {
        if self.code.is_empty() || self.code == code::UNKNOWN {
            self.code = code.into();
        }
        self
    }

    /// Adds an entry to the metadata; an entry of the same key is replaced.
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        let mut next: Option<&(dyn StdError + 'static)> = Some(&error);
        while let Some(current) = next {
            if let Some(known) = current.downcast_ref::<shared::error::Error>() {
                let msg = error.to_string();
                return Self { code: known.code.clone(), msg, metadata: known.metadata.clone() };
            }
            next = current.source();
        }
        Self::unknown(error.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.msg)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        if !self.metadata.is_empty() {
            write!(f, " {:?}", self.metadata)?;
        }
        Ok(())
    }
}

/// `.code(..)` and `.with(..)` on any result that can fail with an [`Error`] or a standard error.
pub trait ResultExt<T> {
    /// Gives a failure this code, unless it has its own; see [`Error::code`].
    fn code(self, code: impl Into<Cow<'static, str>>) -> Result<T>;

    /// Adds metadata to a failure; see [`Error::with`].
    fn with(self, key: impl Into<String>, value: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<Error>> ResultExt<T> for Result<T, E> {
    fn code(self, code: impl Into<Cow<'static, str>>) -> Result<T> {
        self.map_err(|error| error.into().code(code))
    }

    fn with(self, key: impl Into<String>, value: impl Into<String>) -> Result<T> {
        self.map_err(|error| error.into().with(key, value))
    }
}

/// Leaves the handler with an [`Error`]: a code, then a text as for `format!`.
///
/// ```
/// # use worker::prelude::*;
/// fn spend(gold: u64, price: u64) -> Result<u64> {
///     let Some(left) = gold.checked_sub(price) else { bail!("MG-001", "{gold} is not {price}") };
///     Ok(left)
/// }
/// assert_eq!(spend(1, 2).unwrap_err().code, "MG-001");
/// ```
#[macro_export]
macro_rules! bail {
    ($code:expr, $($text:tt)+) => {
        return ::core::result::Result::Err($crate::Error::new($code, ::std::format!($($text)+)).into())
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_error_has_the_unknown_code_until_it_gets_one() {
        let failed: Result<u8, std::num::ParseIntError> = "x".parse();
        let error = failed.clone().code("AUTH-401").with("field", "level").unwrap_err();
        assert_eq!((error.code.as_ref(), error.metadata["field"].as_str()), ("AUTH-401", "level"));
        let plain: Error = failed.unwrap_err().into();
        assert_eq!(plain.code, "PIT-000");
    }

    #[test]
    fn the_first_code_stays() {
        let error = Error::new("GAME-42", "full").code("RH-000");
        assert_eq!(error.code, "GAME-42");
    }
}
