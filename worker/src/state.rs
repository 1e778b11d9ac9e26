//! The values that an application shares with its handlers, one of each type.

use std::any::{Any, TypeId, type_name};
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use crate::call::Call;
use crate::error::{Error, Result};
use crate::extract::FromCall;

/// The values given with [`App::state`](crate::App::state). Never changes after start.
#[derive(Default)]
pub struct States(HashMap<TypeId, Arc<dyn Any + Send + Sync>>);

impl States {
    /// Adds a value; tells whether there was none of its type.
    pub(crate) fn insert<T: Send + Sync + 'static>(&mut self, value: T) -> bool {
        self.0.insert(TypeId::of::<T>(), Arc::new(value)).is_none()
    }

    /// The value of this type.
    pub fn find<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.0.get(&TypeId::of::<T>())?.clone().downcast().ok()
    }
}

/// Extractor of a value that was given with [`App::state`](crate::App::state). Forgetting that stops the start.
pub struct State<T>(pub Arc<T>);

impl<T> Clone for State<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for State<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Send + Sync + 'static> FromCall for State<T> {
    fn from_call(call: &Call) -> Result<Self> {
        let states = &call.context().environment.states;
        states.find().map(State).ok_or_else(|| Error::unknown(missing::<T>()))
    }

    fn missing(states: &States) -> Option<String> {
        states.find::<T>().is_none().then(missing::<T>)
    }
}

fn missing<T>() -> String {
    format!("State<{0}> was not given: add .state(..) with a {0}", type_name::<T>())
}
