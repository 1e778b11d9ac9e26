//! A peer: who counts as one, as far as addresses tell.
//!
//! An IPv6 subscriber usually has a whole /64, so all of it is one peer; an IPv4 address that is written as IPv6 is the
//! IPv4 address.

use std::net::IpAddr;

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

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
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
}
