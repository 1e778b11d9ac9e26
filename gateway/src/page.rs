//! The demo page: a few files that the WebSocket listener serves, so that a browser can be a client.

use shared::websocket::upgrade::page_response;

/// A file.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Where it stands, with the leading slash.
    pub path: &'static str,
    /// Its content type.
    pub content_type: &'static str,
    /// Its content.
    pub content: &'static str,
}

/// The files of one page.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    pages: &'static [Page],
}

impl Pages {
    /// These files and nothing else.
    pub const fn new(pages: &'static [Page]) -> Self {
        Self { pages }
    }

    /// The chat and cluster demo.
    pub const fn demo() -> Self {
        Self::new(&[
            Page {
                path: "/",
                content_type: "text/html; charset=utf-8",
                content: include_str!("../../worker/web/index.html"),
            },
            Page {
                path: "/pitaya.js",
                content_type: "text/javascript; charset=utf-8",
                content: include_str!("../../worker/web/pitaya.js"),
            },
        ])
    }

    /// The whole HTTP answer to a GET of `path`, without its query.
    pub fn answer(&self, path: &str) -> Vec<u8> {
        let path = if path == "/index.html" { "/" } else { path };
        match self.pages.iter().find(|page| page.path == path) {
            Some(page) => page_response(200, page.content_type, page.content.as_bytes()),
            None => page_response(404, "text/plain; charset=utf-8", b"There is no such page.\n"),
        }
    }
}
