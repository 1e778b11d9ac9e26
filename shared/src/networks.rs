//! Networks: a list of addresses and address ranges, as operators write it, and whether an address is in it.
//!
//! No names and no look-ups. The invariant: an IPv4 address is found whether it comes as itself or mapped into IPv6,
//! as a dual-stack socket shows it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// One address range: all addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    /// Any address of the range, canonical.
    address: IpAddr,
    /// How many bits they share: up to 32 for IPv4, up to 128 for IPv6.
    prefix_bits: u8,
}

/// Why a text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address or a network such as 10.0.0.0/8 or fd00::/8")]
pub struct NetworkError(pub String);

impl Network {
    /// Any address of the range.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits its addresses share.
    pub fn prefix_bits(&self) -> u8 {
        self.prefix_bits
    }

    /// Whether the range contains `address`.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                let differing_bits = ours.to_bits() ^ theirs.to_bits();
                differing_bits.leading_zeros() >= u32::from(self.prefix_bits)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let differing_bits = ours.to_bits() ^ theirs.to_bits();
                differing_bits.leading_zeros() >= u32::from(self.prefix_bits)
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    /// Reads `10.0.0.0/8`, `fd00::/8`, or a single address.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let wrong = || NetworkError(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = match prefix {
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                digits.parse().map_err(|_| wrong())?
            }
            Some(_) => return Err(wrong()),
            None => bits_max,
        };
        if prefix_bits > bits_max {
            return Err(wrong());
        }
        Ok(Self { address, prefix_bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix_bits)
    }
}

/// A list of networks. Looking an address up costs a comparison each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    networks: Vec<Network>,
}

impl Networks {
    /// Reads a list of texts.
    ///
    /// Errors: the first text that is no network.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, NetworkError> {
        let networks = texts.into_iter().map(|text| text.trim().parse());
        Ok(Self { networks: networks.collect::<Result<_, _>>()? })
    }

    /// Whether one of them contains `address`.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(address))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_in(network: &str, address: &str) -> bool {
        network.parse::<Network>().unwrap().contains(address.parse().unwrap())
    }

    #[test]
    fn a_network_contains_what_begins_with_its_bits() {
        assert!(is_in("10.0.0.0/8", "10.255.255.255") && !is_in("10.0.0.0/8", "11.0.0.0"));
        assert!(is_in("10.1.2.3/31", "10.1.2.2") && !is_in("10.1.2.3/31", "10.1.2.4"));
        assert!(is_in("1.2.3.4", "1.2.3.4") && !is_in("1.2.3.4", "1.2.3.5"));
        assert!(is_in("0.0.0.0/0", "255.0.0.1") && !is_in("0.0.0.0/0", "::1"));
        assert!(is_in("fd00::/8", "fdff::1") && !is_in("fd00::/8", "fe00::1"));
        assert!(is_in("::/0", "2001::1") && is_in("::1", "::1") && !is_in("::1", "::2"));
    }

    #[test]
    fn a_mapped_address_is_its_ipv4_address() {
        assert!(is_in("127.0.0.0/8", "::ffff:127.0.0.1") && !is_in("::/0", "::ffff:127.0.0.1"));
    }

    #[test]
    fn what_is_no_network_is_named() {
        for text in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "a.b/8", "1.2.3.4/", "::1/+1", "/8"] {
            assert_eq!(text.parse::<Network>(), Err(NetworkError(text.to_owned())));
        }
        assert!(Networks::parse(["10.0.0.0/8", "x"]).is_err());
        let two = Networks::parse(["10.0.0.0/8", " ::1 "]).unwrap();
        assert!(two.contains("10.1.1.1".parse().unwrap()) && !two.is_empty());
        assert_eq!("10.0.0.0/8".parse::<Network>().unwrap().to_string(), "10.0.0.0/8");
    }
}
