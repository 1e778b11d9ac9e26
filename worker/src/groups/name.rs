//! What may be the name of a group, and who may be a member.
//!
//! Names become parts of etcd keys, where a slash would make one group look like another's member, and end up in log
//! lines and subjects. Pitaya checks nothing. The same rules hold for groups in memory, so that an application can be
//! moved to etcd without surprises.

use shared::error::code;
use shared::session::check_uid;

use crate::error::{Error, Result};

/// Longest name of a group, bytes.
pub const GROUP_NAME_BYTES_MAX: usize = 256;

/// Checks a name that came as bytes from outside; returns it as text.
///
/// Fails with `PIT-400`, `illegal group name`, and the reason in the metadata: empty, longer than
/// [`GROUP_NAME_BYTES_MAX`], not UTF-8, or with a slash, a wildcard (`*`, `>`), white space or a control character.
pub fn check_group_name(name: &[u8]) -> Result<&str> {
    let illegal = |reason: &str| {
        Err(Error::new(code::BAD_REQUEST, "illegal group name").with("reason", reason))
    };
    if name.is_empty() {
        return illegal("it is empty");
    }
    if name.len() > GROUP_NAME_BYTES_MAX {
        return illegal("it is too long");
    }
    let Ok(text) = std::str::from_utf8(name) else { return illegal("it is not UTF-8") };
    for character in text.chars() {
        match character {
            '/' => return illegal("it has a slash"),
            '*' | '>' => return illegal("it has a wildcard"),
            c if c.is_whitespace() => return illegal("it has white space"),
            c if c.is_control() => return illegal("it has a control character"),
            _ => {}
        }
    }
    Ok(text)
}

/// Whether somebody can be a member: whoever can be bound. Pitaya's error for an empty uid, `PIT-400` for others.
pub(crate) fn check_member(uid: &str) -> Result<()> {
    if uid.is_empty() {
        return Err(Error::unknown("empty uid"));
    }
    check_uid(uid).map_err(|error| {
        Error::new(code::BAD_REQUEST, "illegal uid").with("reason", error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_pass_up_to_the_limit() {
        let longest = "x".repeat(GROUP_NAME_BYTES_MAX);
        for name in ["room", "a", "guild:7", "räume", "a.b..c", "uids", longest.as_str()] {
            assert_eq!(check_group_name(name.as_bytes()).unwrap(), name);
        }
    }

    #[test]
    fn names_that_would_lead_elsewhere_are_refused_with_a_code() {
        let too_long = "x".repeat(GROUP_NAME_BYTES_MAX + 1);
        let names: [&[u8]; 13] = [
            b"",
            b"a/uids/b",
            b"/",
            b"*",
            b"a>b",
            b"a b",
            b"a\tb",
            b"a\r\nb",
            b"a\0",
            b"\x7f",
            "a\u{a0}b".as_bytes(),
            b"\xff\xfe",
            too_long.as_bytes(),
        ];
        for name in names {
            let error = check_group_name(name).unwrap_err();
            assert_eq!((&*error.code, &*error.msg), ("PIT-400", "illegal group name"), "{name:?}");
            assert!(error.metadata.contains_key("reason"));
        }
    }

    #[test]
    fn members_are_those_who_can_be_bound() {
        assert!(check_member("ann").is_ok() && check_member("a/b@c.d").is_ok());
        assert_eq!(check_member("").unwrap_err(), Error::unknown("empty uid"));
        for uid in ["a b", "a.*", ">", "a..b", "a\nb", &"x".repeat(4_000)] {
            assert_eq!(check_member(uid).unwrap_err().code, "PIT-400", "{uid}");
        }
    }
}
