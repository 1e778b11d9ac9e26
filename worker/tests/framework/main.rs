//! What surrounds handlers: pipelines, modules, timers, session hooks, and what a panic in any of them does.

#![allow(clippy::unwrap_used)] // A panic is how a test fails.

mod docs;
mod modules;
mod pipelines;
mod sessions;
#[path = "../support/mod.rs"]
mod support;
mod timers;

use std::sync::{Arc, Mutex};

/// What happened, in order.
#[derive(Clone, Default)]
struct Journal(Arc<Mutex<Vec<String>>>);

impl Journal {
    fn note(&self, text: impl Into<String>) {
        self.0.lock().unwrap().push(text.into());
    }

    /// A hook that notes its name.
    fn step(&self, name: &'static str) -> impl Fn() -> std::future::Ready<()> + Clone + use<> {
        let journal = self.clone();
        move || {
            journal.note(name);
            std::future::ready(())
        }
    }

    /// Everything noted since the last call.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}
