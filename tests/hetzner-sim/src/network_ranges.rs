//! Private IPv4 ranges of networks and subnets.

use std::net::Ipv4Addr;

/// An IPv4 range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    base: u32,
    length: u32,
}

impl Range {
    /// Its first part, at most as large as the subnet that Hetzner takes by default.
    pub(crate) fn first_subnet(self) -> Self {
        Self {
            base: self.base,
            length: self.length.max(24),
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, length) = text.split_once('/')?;
        let base = address.parse::<Ipv4Addr>().ok()?.to_bits();
        let length = length
            .parse()
            .ok()
            .filter(|length| (8..=30).contains(length))?;
        (base & !Self::mask(length) == 0).then_some(Self { base, length })
    }

    fn mask(length: u32) -> u32 {
        u32::MAX << (32 - length)
    }

    pub(crate) fn holds(self, address: u32) -> bool {
        address & Self::mask(self.length) == self.base
    }

    pub(crate) fn within(self, outer: Self) -> bool {
        self.length >= outer.length && outer.holds(self.base)
    }

    pub(crate) fn is_private(self) -> bool {
        ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]
            .into_iter()
            .filter_map(|outer| {
                let (address, length) = outer.split_once('/')?;
                Some(Self {
                    base: address.parse::<Ipv4Addr>().ok()?.to_bits(),
                    length: length.parse().ok()?,
                })
            })
            .any(|outer| self.within(outer))
    }

    /// Its first address, which Hetzner keeps for the gateway.
    pub(crate) fn gateway(self) -> String {
        Ipv4Addr::from_bits(self.base + 1).to_string()
    }

    pub(crate) fn hosts(self) -> impl Iterator<Item = String> {
        let end = self.base | !Self::mask(self.length);
        (self.base + 2..end).map(|bits| Ipv4Addr::from_bits(bits).to_string())
    }

    pub(crate) fn text(self) -> String {
        format!("{}/{}", Ipv4Addr::from_bits(self.base), self.length)
    }
}
