//! What may be registered as a handler: async functions whose arguments are extractors, then perhaps a message.
//!
//! The trait is implemented for functions of up to eight arguments and for nothing else. The marker type parameter
//! tells the compiler how the last argument is made (from the call, or by decoding the message), so that both kinds
//! of function fit without an annotation. Whether a handler is a request or a notify handler is its return type.

use std::any::TypeId;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::call::Call;
use crate::error::{Error, Result};
use crate::extract::FromCall;
use crate::payload::{Encode, Payload};
use crate::shape::{Shape, Shapes};
use crate::state::States;

/// How a handler wants to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It returns a value: clients send requests.
    Request,
    /// It returns nothing: clients send notifies. A request is refused with `tried to request a notify route`.
    Notify,
}

/// What a handler may return: nothing, `Result<()>` (both notify), or `Result<T>` with a `T` to answer (request).
#[diagnostic::on_unimplemented(
    message = "a handler cannot return `{Self}`",
    note = "return `Result<T>` to answer a request, `Result<()>` or nothing for a notify"
)]
pub trait Output: Send + 'static {
    /// Request or notify.
    fn kind() -> Kind;

    /// The encoded answer; empty for a notify.
    fn into_answer(self) -> Result<Bytes>;

    /// What the documentation says about the answer; none for a notify.
    fn shape() -> Option<Shape> {
        None
    }
}

impl Output for () {
    fn kind() -> Kind {
        Kind::Notify
    }

    fn into_answer(self) -> Result<Bytes> {
        Ok(Bytes::new())
    }
}

impl<T: Encode + Send + 'static, E: Into<Error> + Send + 'static> Output for Result<T, E> {
    fn kind() -> Kind {
        if TypeId::of::<T>() == TypeId::of::<()>() { Kind::Notify } else { Kind::Request }
    }

    fn into_answer(self) -> Result<Bytes> {
        let value = self.map_err(Into::into)?;
        if Self::kind() == Kind::Notify { Ok(Bytes::new()) } else { value.encode() }
    }

    fn shape() -> Option<Shape> {
        (Self::kind() == Kind::Request).then(T::shape)
    }
}

/// Marks a last argument that is made from the call.
#[derive(Debug)]
pub struct ViaCall;

/// Marks a last argument that is decoded from the message.
#[derive(Debug)]
pub struct ViaMessage;

/// The last argument of a handler: an extractor or the message.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is neither an extractor nor a message",
    label = "a handler cannot take this",
    note = "extractors are Session, State<T>, Rpc, Push, Groups and Ctx; a message is the last argument",
    note = "a message is a type with `#[derive(Deserialize)]`, `Pb<T>` with a protobuf message, or `Bytes`"
)]
pub trait FromLast<Via>: Sized + Send {
    /// Decodes the message ahead of time, so that a message that cannot be read is refused before the pipelines run.
    fn prepare(_: &mut Call) -> Result<()> {
        Ok(())
    }

    /// What the documentation says about the message; none when there is none.
    fn shape() -> Option<Shape> {
        None
    }

    /// Makes the argument.
    fn from_last(call: &mut Call) -> Result<Self>;

    /// See [`FromCall::missing`].
    fn missing(_: &States) -> Option<String> {
        None
    }
}

impl<T: FromCall> FromLast<ViaCall> for T {
    fn from_last(call: &mut Call) -> Result<Self> {
        T::from_call(call)
    }

    fn missing(states: &States) -> Option<String> {
        <T as FromCall>::missing(states)
    }
}

impl<T: Payload> FromLast<ViaMessage> for T {
    fn shape() -> Option<Shape> {
        Some(<T as Payload>::shape())
    }

    fn prepare(call: &mut Call) -> Result<()> {
        let argument = T::decode(call.message())?;
        call.argument = Some(Box::new(argument));
        Ok(())
    }

    fn from_last(call: &mut Call) -> Result<Self> {
        let prepared = call.argument.take().and_then(|argument| argument.downcast().ok());
        let argument =
            prepared.map_or_else(|| T::decode(call.message()), |argument| Ok(*argument))?;
        argument.check()?;
        Ok(argument)
    }
}

/// An async function that can be registered with [`App::on`](crate::App::on) and its like.
#[diagnostic::on_unimplemented(
    message = "this is not a handler",
    label = "not an async function of extractors and a message",
    note = "a handler is an `async fn` with extractors (Session, State<T>, Rpc, Push, Groups, Ctx) as arguments, the message last, which returns `Result<T>` or nothing",
    note = "its future must be Send: do not hold an Rc or a lock guard across an await"
)]
pub trait Handler<Marker>: Send + Sync + 'static {
    /// Request or notify, by the return type.
    fn kind(&self) -> Kind;

    /// What the arguments need and `states` does not hold; found at start instead of at the first call.
    fn missing(&self, states: &States) -> Option<String>;

    /// What the documentation says about message and answer.
    fn shapes(&self) -> Shapes {
        Shapes::default()
    }

    /// Decodes the message ahead of the call; see [`FromLast::prepare`].
    fn prepare(&self, _: &mut Call) -> Result<()> {
        Ok(())
    }

    /// Makes the arguments and calls the function. The answer is empty for a notify.
    fn call(&self, call: Call) -> BoxFuture<'static, Result<Bytes>>;
}

macro_rules! handler {
    ($($argument:ident),*) => {
        impl<F, Fut, Out, Via, $($argument,)* Last> Handler<(Via, $($argument,)* Last)> for F
        where
            F: Fn($($argument,)* Last) -> Fut + Send + Sync + 'static,
            Fut: Future<Output = Out> + Send + 'static,
            Out: Output,
            $($argument: FromCall,)*
            Last: FromLast<Via>,
        {
            fn kind(&self) -> Kind {
                Out::kind()
            }

            fn missing(&self, states: &States) -> Option<String> {
                $(if let Some(missing) = <$argument as FromCall>::missing(states) {
                    return Some(missing);
                })*
                Last::missing(states)
            }

            fn shapes(&self) -> Shapes {
                Shapes { input: Last::shape(), output: Out::shape() }
            }

            fn prepare(&self, call: &mut Call) -> Result<()> {
                Last::prepare(call)
            }

            fn call(&self, mut call: Call) -> BoxFuture<'static, Result<Bytes>> {
                let future = (|| Ok((self)(
                    $(<$argument as FromCall>::from_call(&call)?,)*
                    Last::from_last(&mut call)?,
                )))();
                match future {
                    Ok(future) => Box::pin(async move { future.await.into_answer() }),
                    Err(error) => Box::pin(std::future::ready(Err(error))),
                }
            }
        }
    };
}

impl<F, Fut, Out> Handler<()> for F
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Out> + Send + 'static,
    Out: Output,
{
    fn kind(&self) -> Kind {
        Out::kind()
    }

    fn missing(&self, _: &States) -> Option<String> {
        None
    }

    fn shapes(&self) -> Shapes {
        Shapes { input: None, output: Out::shape() }
    }

    fn call(&self, _: Call) -> BoxFuture<'static, Result<Bytes>> {
        let future = (self)();
        Box::pin(async move { future.await.into_answer() })
    }
}

handler!();
handler!(A1);
handler!(A1, A2);
handler!(A1, A2, A3);
handler!(A1, A2, A3, A4);
handler!(A1, A2, A3, A4, A5);
handler!(A1, A2, A3, A4, A5, A6);
handler!(A1, A2, A3, A4, A5, A6, A7);

type CallAny = dyn Fn(Call) -> BoxFuture<'static, Result<Bytes>> + Send + Sync;
type PrepareAny = dyn Fn(&mut Call) -> Result<()> + Send + Sync;
type MissingOfAny = dyn Fn(&States) -> Option<String> + Send + Sync;

/// A handler without its type, as the tables hold it.
#[derive(Clone)]
pub(crate) struct AnyHandler {
    pub(crate) kind: Kind,
    pub(crate) shapes: Shapes,
    call: Arc<CallAny>,
    prepare: Arc<PrepareAny>,
    missing: Arc<MissingOfAny>,
}

impl AnyHandler {
    pub(crate) fn new<Marker: 'static>(handler: impl Handler<Marker>) -> Self {
        let handler = Arc::new(handler);
        let (same, prepared) = (Arc::clone(&handler), Arc::clone(&handler));
        Self {
            kind: handler.kind(),
            shapes: handler.shapes(),
            call: Arc::new(move |call| handler.call(call)),
            prepare: Arc::new(move |call| prepared.prepare(call)),
            missing: Arc::new(move |states| same.missing(states)),
        }
    }

    pub(crate) fn call(&self, call: Call) -> BoxFuture<'static, Result<Bytes>> {
        (self.call)(call)
    }

    /// Decodes the message ahead of [`AnyHandler::call`].
    pub(crate) fn prepare(&self, call: &mut Call) -> Result<()> {
        (self.prepare)(call)
    }

    pub(crate) fn missing(&self, states: &States) -> Option<String> {
        (self.missing)(states)
    }
}
