//! Names that the game chooses and that become parts of subjects and messages: refused here, at the edge, when nobody
//! could carry them.

use shared::error::code;
use shared::message::ROUTE_BYTES_MAX;
use shared::session::check_uid;

use crate::error::{Error, Result};

/// The route of a push: 1 to 255 bytes without control characters (client protocol 3.3). Fails with `PIT-400`.
pub(crate) fn check_push_route(route: &str) -> Result<()> {
    let text = if route.is_empty() {
        "route field can not be empty".to_owned()
    } else if route.len() > ROUTE_BYTES_MAX {
        format!("a route of {} bytes is longer than {ROUTE_BYTES_MAX}", route.len())
    } else if route.chars().any(char::is_control) {
        "invalid route".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::new(code::BAD_REQUEST, text))
}

/// The type of a gateway, which is one part of a subject. Fails with Pitaya's text when it is empty, with `PIT-400` when
/// it would change the subject.
pub(crate) fn check_frontend_type(frontend_type: &str) -> Result<()> {
    if frontend_type.is_empty() {
        let text = "for using SendPushToUsers from a backend server you have to specify a valid frontendType";
        return Err(Error::unknown(text));
    }
    let is_one_part = !frontend_type.contains(['.', '/']) && check_uid(frontend_type).is_ok();
    if is_one_part && !frontend_type.chars().any(char::is_whitespace) {
        return Ok(());
    }
    Err(Error::new(code::BAD_REQUEST, "the frontend type is not the name of a server type"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_of_pushes_have_one_to_255_bytes_without_control_characters() {
        let longest = "r".repeat(ROUTE_BYTES_MAX);
        for route in ["r", "onMessage", "a.b.c", "\u{e9}", longest.as_str()] {
            assert!(check_push_route(route).is_ok(), "{route}");
        }
        let longer = "r".repeat(ROUTE_BYTES_MAX + 1);
        for route in ["", "a\nb", "\0", "\u{85}", longer.as_str()] {
            assert_eq!(check_push_route(route).unwrap_err().code, "PIT-400", "{route:?}");
        }
    }

    #[test]
    fn a_frontend_type_is_one_part_of_a_subject() {
        assert!(check_frontend_type("connector").is_ok());
        assert_eq!(check_frontend_type("").unwrap_err().code, "PIT-000");
        for bad in ["a b", "*", ">", "a.b", "a/b", "a\r\n", "\u{3000}x", &"t".repeat(257)] {
            assert_eq!(check_frontend_type(bad).unwrap_err().code, "PIT-400", "{bad:?}");
        }
    }
}
