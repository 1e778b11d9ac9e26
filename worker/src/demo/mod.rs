//! The demo game: Pitaya's chat room, for the demo page, for Pitaya's own load script, and for tests.

mod room;
mod test_routes;

use crate::app::App;
use room::Room;

/// What the demo consists of.
#[derive(Debug, Clone, Copy, Default)]
pub struct DemoOptions {
    /// Adds the routes `room.test.*`, with which tests make a server slow, noisy or failing. Not for the open internet.
    pub test_routes: bool,
}

/// The demo application, of server type `room`.
pub fn app(options: DemoOptions) -> App {
    let app = App::new("room").component(Room);
    if options.test_routes { test_routes::add(app) } else { app }
}
