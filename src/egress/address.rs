//! Which addresses are public, and which others somebody has allowed.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, de};

/// An IP network in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// An IPv4 address is in no IPv6 network: `::ffff:10.0.0.1` is allowed by `::ffff:10.0.0.0/104` and by nothing else.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(net), IpAddr::V4(address)) => {
                let (net, address) = (u128::from(net.to_bits()), u128::from(address.to_bits()));
                begins_alike(net, address, 32, self.prefix)
            }
            (IpAddr::V6(net), IpAddr::V6(address)) => {
                begins_alike(net.to_bits(), address.to_bits(), 128, self.prefix)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

fn begins_alike(one: u128, other: u128, bits: u8, prefix: u8) -> bool {
    let rest = u32::from(bits.saturating_sub(prefix));
    // A shift by all 128 bits leaves nothing to differ in.
    (one ^ other).checked_shr(rest).unwrap_or(0) == 0
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a network such as 10.20.0.0/16");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        match prefix <= bits {
            true => Ok(Self { address, prefix }),
            false => Err(wrong()),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Whether the daemon may connect to `address`.
pub(super) fn may_reach(address: IpAddr, allowed: &[Network]) -> bool {
    is_public(address) || allowed.iter().any(|network| network.contains(address))
}

/// Globally reachable unicast, by the IANA special-purpose address registries (RFC 6890). What is not known to be is not.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let special = match address.octets() {
        // This network, and the addresses that were for experiments, broadcast among them.
        [0 | 240..=255, ..] => true,
        // Shared by carriers (RFC 6598), where some clouds answer for their instances' metadata.
        [100, 64..=127, ..] => true,
        // Protocol assignments, the 6to4 relay, benchmarks.
        [192, 0, 0, _] | [192, 88, 99, _] | [198, 18..=19, ..] => true,
        _ => false,
    };
    !(special
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation())
}

/// Of `2000::/3`, which is all that is given out, without what embeds an IPv4 address or leads nowhere. IPv4-mapped,
/// loopback, unique-local, link-local, NAT64 and multicast addresses lie outside of it.
fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // Protocol assignments, Teredo among them.
        [0x2001, 0..=0x01ff, ..] => false,
        // Documentation.
        [0x2001, 0x0db8, ..] | [0x3fff, 0..=0x0fff, ..] => false,
        // 6to4.
        [0x2002, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_that_are_not_public_are_refused() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:8.8.8.8",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "ff0e::1",
        ] {
            assert!(!may_reach(ip(address), &[]), "{address}");
        }
    }

    #[test]
    fn public_addresses_are_not() {
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.255.255",
            "172.32.0.1",
            "192.0.1.1",
            "223.255.255.255",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            assert!(may_reach(ip(address), &[]), "{address}");
        }
    }

    #[test]
    fn a_network_allows_what_is_in_it_and_nothing_else() {
        let allowed = |network: &str, address: &str| {
            may_reach(ip(address), &[network.parse::<Network>().unwrap()])
        };
        assert!(allowed("127.0.0.0/8", "127.9.9.9"));
        assert!(!allowed("127.0.0.0/8", "10.0.0.1"));
        assert!(!allowed("127.0.0.0/8", "::ffff:127.0.0.1"));
        assert!(!allowed("127.0.0.0/8", "::1"));
        assert!(allowed("::1/128", "::1"));
        assert!(!allowed("::1/128", "::2"));
        assert!(allowed("10.1.2.0/23", "10.1.3.255"));
        assert!(!allowed("10.1.2.0/23", "10.1.4.0"));
        assert!(allowed("10.1.2.3/32", "10.1.2.3"));
        assert!(!allowed("10.1.2.3/32", "10.1.2.2"));
        assert!(allowed("0.0.0.0/0", "169.254.169.254"));
        assert!(!allowed("0.0.0.0/0", "fe80::1"));
        assert!(allowed("::/0", "fe80::1"));
        assert!(!allowed("::/0", "127.0.0.1"));
        assert!(allowed("::ffff:10.0.0.0/104", "::ffff:10.9.9.9"));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "",
            "127.0.0.1",
            "127.0.0.0/33",
            "::/129",
            "/8",
            "127.0.0.0/",
            "127.0.0.0/-1",
            "127.0.0.0/8/8",
            "localhost/8",
            "127.0.0.0/999",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
