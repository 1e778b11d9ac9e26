//! Validation of arguments: what a message may hold, beyond what its type says.
//!
//! Two ways, one check. [`Valid`] in a handler's signature validates always. A type that is named with
//! [`App::validate`](crate::App::validate) is validated wherever it is a handler's last argument, if
//! `pitaya.defaultpipelines.structvalidation.enabled` is set, which is off by default as in Pitaya. Raw arguments are
//! never validated. A failure is answered with `PIT-000` and the text of the check.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::ops::Deref;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::payload::{Payload, Pb};
use crate::shape::Shape;

/// A type that can judge its values.
///
/// ```
/// use worker::prelude::*;
///
/// #[derive(Deserialize)]
/// struct Buy { price: u64 }
///
/// impl Validate for Buy {
///     fn validate(&self) -> Result<()> {
///         if !(1..=1000).contains(&self.price) { bail!("PIT-000", "price: {} is not 1..=1000", self.price) }
///         Ok(())
///     }
/// }
///
/// async fn buy(Valid(buy): Valid<Buy>) -> Result<u64> { Ok(buy.price) }
/// let app = App::new("shop").on("shop.buy", buy);
/// ```
pub trait Validate {
    /// Fails with what is wrong; the code is `PIT-000` unless the error says another one.
    fn validate(&self) -> Result<()>;
}

/// A message that is validated before the handler runs and after the functions before it, whatever is configured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Valid<T>(pub T);

impl<T> Deref for Valid<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Payload + Validate> Payload for Valid<T> {
    fn decode(bytes: &Bytes) -> Result<Self> {
        T::decode(bytes).map(Valid)
    }

    fn check(&self) -> Result<()> {
        self.0.check()?;
        self.0.validate()
    }

    fn shape() -> Shape {
        T::shape()
    }
}

impl<T: Validate> Validate for Pb<T> {
    fn validate(&self) -> Result<()> {
        self.0.validate()
    }
}

type Check = Box<dyn Fn(&(dyn Any + Send)) -> Result<()> + Send + Sync>;

/// The types that are validated without saying so in the signature.
#[derive(Default)]
pub(crate) struct Validators {
    checks: HashMap<TypeId, Check>,
    is_enabled: bool,
}

impl Validators {
    /// Names a type. Naming it twice changes nothing.
    pub(crate) fn add<T: Validate + Send + 'static>(&mut self) {
        let check: Check = Box::new(|argument| match argument.downcast_ref::<T>() {
            Some(argument) => argument.validate(),
            None => Ok(()),
        });
        self.checks.insert(TypeId::of::<T>(), check);
    }

    pub(crate) fn enable(&mut self, is_enabled: bool) {
        self.is_enabled = is_enabled;
    }

    pub(crate) fn is_on(&self) -> bool {
        self.is_enabled && !self.checks.is_empty()
    }

    /// Validates a decoded argument, if its type was named.
    pub(crate) fn check(&self, argument: Option<&(dyn Any + Send)>) -> Result<()> {
        let Some(argument) = argument.filter(|_| self.is_on()) else { return Ok(()) };
        let check = self.checks.get(&(*argument).type_id());
        let judged = check.map(|check| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(argument)))
                .unwrap_or_else(|_| Err(Error::unknown("the validation panicked")))
        });
        judged.unwrap_or(Ok(()))
    }
}
