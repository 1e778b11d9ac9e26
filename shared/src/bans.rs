//! Bans: addresses, networks and users that are not let in, each perhaps until a time.
//!
//! Pure: a list that is looked things up in, and the text forms of a ban. How a list reaches every gateway is
//! cluster/ban_keeper.rs. The invariant: looking an address up costs one look for each length of network that is banned,
//! however many bans there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::networks::Network;
use crate::session::check_uid;

/// Longest reason, bytes.
pub const REASON_BYTES_MAX: usize = 256;
/// Bans at most; more are refused.
pub const BANS_MAX: usize = 100_000;

/// Who is banned. As a text `uid:ann`, or `address:192.0.2.0/24`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// An address or a network.
    Address(Prefix),
    /// A user.
    Uid(String),
}

/// The first bits of addresses: a network without anything behind its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    is_v4: bool,
    length: u8,
    /// IPv4 in the lower 32 bits.
    bits: u128,
}

/// What is known of a ban besides its subject.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ban {
    /// When it ends, ms since the epoch; `None` never.
    pub until_ms: Option<u64>,
    /// For people; never shown to the client.
    pub reason: String,
}

/// Why a text is no ban.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BanError {
    /// The subject.
    #[error(
        "{0:?} is neither uid:NAME nor address:NETWORK, such as uid:ann or address:192.0.2.0/24"
    )]
    Subject(String),
    /// The stored form.
    #[error("not a stored ban")]
    Stored,
}

impl Ban {
    /// Whether it holds at this time.
    pub fn holds(&self, now_ms: u64) -> bool {
        self.until_ms.is_none_or(|until_ms| now_ms < until_ms)
    }

    /// The form in which it is stored.
    pub fn encode(&self) -> Vec<u8> {
        json!({"until_ms": self.until_ms, "reason": self.reason}).to_string().into_bytes()
    }

    /// Reads the stored form. Unknown fields are ignored: a later release may write them.
    ///
    /// # Errors
    /// [`BanError::Stored`]
    pub fn decode(bytes: &[u8]) -> Result<Self, BanError> {
        let value: Value = serde_json::from_slice(bytes).map_err(|_| BanError::Stored)?;
        let until_ms = match value.get("until_ms") {
            None | Some(Value::Null) => None,
            Some(until_ms) => Some(until_ms.as_u64().ok_or(BanError::Stored)?),
        };
        let reason = value.get("reason").and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Self { until_ms, reason })
    }
}

impl Prefix {
    fn of(address: IpAddr, length: u8) -> Self {
        let (is_v4, bits, length_max) = match address.to_canonical() {
            IpAddr::V4(address) => (true, u128::from(address.to_bits()), 32),
            IpAddr::V6(address) => (false, address.to_bits(), 128),
        };
        let length = length.min(length_max);
        let behind = u32::from(length_max - length);
        let bits = bits.checked_shr(behind).and_then(|bits| bits.checked_shl(behind));
        Self { is_v4, length, bits: bits.unwrap_or(0) }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = if self.is_v4 {
            IpAddr::from((self.bits as u32).to_be_bytes())
        } else {
            IpAddr::from(self.bits.to_be_bytes())
        };
        write!(out, "{address}/{}", self.length)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(prefix) => write!(out, "address:{prefix}"),
            Self::Uid(uid) => write!(out, "uid:{uid}"),
        }
    }
}

impl FromStr for Subject {
    type Err = BanError;

    /// # Errors
    /// [`BanError::Subject`]
    fn from_str(text: &str) -> Result<Self, BanError> {
        let wrong = || BanError::Subject(text.chars().take(128).collect());
        if let Some(uid) = text.strip_prefix("uid:") {
            check_uid(uid).map_err(|_| wrong())?;
            return Ok(Self::Uid(uid.to_owned()));
        }
        let network = text.strip_prefix("address:").ok_or_else(wrong)?;
        let network: Network = network.parse().map_err(|_| wrong())?;
        Ok(Self::Address(Prefix::of(network.address(), network.prefix_bits())))
    }
}

/// All bans, to be looked things up in. Replaced as a whole when one changes.
#[derive(Clone, Debug, Default)]
pub struct BanList {
    /// Until when, ms since the epoch.
    addresses: HashMap<Prefix, u64>,
    /// The kinds and lengths that `addresses` has.
    lengths: BTreeSet<(bool, u8)>,
    uids: HashMap<String, u64>,
}

impl BanList {
    /// A list of these bans.
    pub fn new(bans: &BTreeMap<Subject, Ban>) -> Self {
        let mut list = Self::default();
        for (subject, ban) in bans {
            let until_ms = ban.until_ms.unwrap_or(u64::MAX);
            match subject {
                Subject::Address(prefix) => {
                    list.lengths.insert((prefix.is_v4, prefix.length));
                    list.addresses.insert(*prefix, until_ms);
                }
                Subject::Uid(uid) => drop(list.uids.insert(uid.clone(), until_ms)),
            }
        }
        list
    }

    /// Whether an address is banned at this time, ms since the epoch.
    pub fn bans_address(&self, address: IpAddr, now_ms: u64) -> bool {
        self.lengths.iter().any(|(is_v4, length)| {
            let prefix = Prefix::of(address, *length);
            prefix.is_v4 == *is_v4
                && self.addresses.get(&prefix).is_some_and(|until_ms| now_ms < *until_ms)
        })
    }

    /// Whether a user is banned at this time, ms since the epoch.
    pub fn bans_uid(&self, uid: &str, now_ms: u64) -> bool {
        !self.uids.is_empty() && self.uids.get(uid).is_some_and(|until_ms| now_ms < *until_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(bans: &[(&str, Option<u64>)]) -> BanList {
        let bans = bans.iter().map(|(subject, until_ms)| {
            (subject.parse().unwrap(), Ban { until_ms: *until_ms, reason: String::new() })
        });
        BanList::new(&bans.collect())
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_networks_and_users_are_found_until_their_time() {
        let list = list(&[
            ("address:192.0.2.7", None),
            ("address:198.51.100.99/24", Some(1_000)),
            ("address:2001:db8::/32", None),
            ("uid:ann", Some(500)),
        ]);
        assert!(list.bans_address(address("192.0.2.7"), 0));
        assert!(list.bans_address(address("::ffff:192.0.2.7"), u64::MAX - 1));
        assert!(!list.bans_address(address("192.0.2.8"), 0));
        assert!(list.bans_address(address("198.51.100.1"), 999));
        assert!(!list.bans_address(address("198.51.100.1"), 1_000));
        assert!(list.bans_address(address("2001:db8:1::1"), 0));
        assert!(!list.bans_address(address("2001:db9::1"), 0));
        assert!(list.bans_uid("ann", 499) && !list.bans_uid("ann", 500));
        assert!(!list.bans_uid("bob", 0) && !BanList::default().bans_uid("", 0));
    }

    #[test]
    fn everybody_can_be_banned_and_one_kind_is_not_the_other() {
        let list = list(&[("address:0.0.0.0/0", None)]);
        assert!(list.bans_address(address("203.0.113.1"), 0));
        assert!(!list.bans_address(address("2001:db8::1"), 0));
    }

    #[test]
    fn texts_are_read_as_they_are_written() {
        for (text, shown) in [
            ("uid:ann", "uid:ann"),
            ("address:192.0.2.7", "address:192.0.2.7/32"),
            ("address:192.0.2.7/24", "address:192.0.2.0/24"),
            ("address:::1", "address:::1/128"),
            ("address:2001:db8::1/32", "address:2001:db8::/32"),
        ] {
            let subject: Subject = text.parse().unwrap();
            assert_eq!(subject.to_string(), shown);
            assert_eq!(shown.parse(), Ok(subject));
        }
        for wrong in
            ["", "ann", "uid:", "uid:a b", "uid:a.*", "address:", "address:x", "address:1.2.3.4/33"]
        {
            assert!(wrong.parse::<Subject>().is_err(), "{wrong}");
        }
        let ban = Ban { until_ms: Some(7), reason: "spam \"and\" more".into() };
        assert_eq!(Ban::decode(&ban.encode()), Ok(ban));
        assert_eq!(Ban::decode(b"{}"), Ok(Ban::default()));
        for wrong in [&b""[..], b"[", br#"{"until_ms":"x"}"#, br#"{"until_ms":-1}"#] {
            assert_eq!(Ban::decode(wrong), Err(BanError::Stored));
        }
    }
}
