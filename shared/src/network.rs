//! Addresses as limits and bans see them: who counts as one peer, and networks in the form `192.0.2.0/24`.
//!
//! No sockets. An IPv6 subscriber usually has a whole /64, so all of it is one peer; an IPv4 address that is written as
//! IPv6 is the IPv4 address. The invariant: a [`Network`] has no bits set behind its prefix.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Bits of an IPv6 address that name a subscriber.
const SUBSCRIBER_BITS: u8 = 64;

/// One peer, as far as addresses tell: an IPv4 address, or an IPv6 network of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// An IPv4 address.
    V4(u32),
    /// The upper half of an IPv6 address.
    V6(u64),
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> SUBSCRIBER_BITS) as u64),
        }
    }
}

/// An address, or all addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    is_v4: bool,
    /// IPv4 in the lower 32 bits.
    bits: u128,
    prefix: u8,
}

/// Why a text is no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an address or a network such as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32")]
pub struct NetworkError;

impl Network {
    /// The network of one address only.
    pub fn of(address: IpAddr) -> Self {
        let (is_v4, bits, length) = parts(address);
        Self { is_v4, bits, prefix: length }
    }

    /// Whether an address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (is_v4, bits, length) = parts(address);
        is_v4 == self.is_v4
            && (bits ^ self.bits).checked_shr(u32::from(length - self.prefix)).unwrap_or(0) == 0
    }
}

/// Whether it is IPv4, its bits, and how many there are.
fn parts(address: IpAddr) -> (bool, u128, u8) {
    match address.to_canonical() {
        IpAddr::V4(address) => (true, u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (false, address.to_bits(), 128),
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    /// # Errors
    /// The text is neither an address nor a network, or has bits set behind its prefix.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let whole = Self::of(address.parse().map_err(|_| NetworkError)?);
        let Some(prefix) = prefix else { return Ok(whole) };
        let prefix: u8 = prefix.parse().map_err(|_| NetworkError)?;
        let free = whole.prefix.checked_sub(prefix).ok_or(NetworkError)?;
        let behind = 1u128.checked_shl(u32::from(free)).map_or(u128::MAX, |bit| bit - 1);
        if whole.bits & behind != 0 {
            return Err(NetworkError);
        }
        Ok(Self { prefix, ..whole })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, length) = if self.is_v4 {
            (IpAddr::from((self.bits as u32).to_be_bytes()), 32)
        } else {
            (IpAddr::from(Ipv6Addr::from_bits(self.bits)), 128)
        };
        if self.prefix == length {
            write!(out, "{address}")
        } else {
            write!(out, "{address}/{}", self.prefix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn a_subscriber_s_ipv6_network_is_one_peer_and_a_mapped_address_is_ipv4() {
        let peer = |text| Peer::from(address(text));
        assert_eq!(peer("2001:db8:0:1::1"), peer("2001:db8:0:1:ffff:ffff:ffff:ffff"));
        assert_ne!(peer("2001:db8:0:1::1"), peer("2001:db8:0:2::1"));
        assert_eq!(peer("::ffff:192.0.2.1"), peer("192.0.2.1"));
        assert_ne!(peer("192.0.2.1"), peer("192.0.2.2"));
        assert_ne!(peer("0.0.0.1"), peer("::1"));
    }

    #[test]
    fn a_network_holds_exactly_the_addresses_that_begin_like_it() {
        let holds = |text: &str, inside: &str| network(text).contains(address(inside));
        assert!(holds("192.0.2.0/24", "192.0.2.255") && !holds("192.0.2.0/24", "192.0.3.0"));
        assert!(holds("192.0.2.7", "192.0.2.7") && !holds("192.0.2.7", "192.0.2.6"));
        assert!(holds("192.0.2.7", "::ffff:192.0.2.7"));
        assert!(
            holds("2001:db8::/32", "2001:db8:ffff::1") && !holds("2001:db8::/32", "2001:db9::")
        );
        assert!(holds("0.0.0.0/0", "203.0.113.9") && !holds("0.0.0.0/0", "2001:db8::1"));
        assert!(holds("::/0", "2001:db8::1") && !holds("::/0", "203.0.113.9"));
        assert!(holds("::1", "::1") && !holds("::1", "0.0.0.1"));
    }

    #[test]
    fn what_is_no_network_is_refused_and_what_is_one_prints_as_it_was_written() {
        for wrong in [
            "",
            "x",
            "192.0.2",
            "192.0.2.0/33",
            "192.0.2.1/24",
            "2001:db8::/129",
            "::1/64",
            "1.2.3.4/",
            "1.2.3.4/-1",
            "[::1]",
        ] {
            assert_eq!(wrong.parse::<Network>(), Err(NetworkError), "{wrong}");
        }
        for text in [
            "192.0.2.0/24",
            "192.0.2.7",
            "2001:db8::/32",
            "::1",
            "0.0.0.0/0",
            "::/0",
            "255.255.255.255",
        ] {
            assert_eq!(network(text).to_string(), text);
        }
    }
}
