//! Rules of firewalls: how they are read, checked and shown.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::error::ApiError;
use crate::request::{Input, required};

/// Most rules of one firewall.
const MAX_RULES: usize = 50;
/// Most CIDRs of one rule.
const MAX_CIDRS: usize = 100;

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) description: Option<String>,
    pub(crate) direction: String,
    pub(crate) protocol: String,
    pub(crate) port: Option<String>,
    pub(crate) source_ips: Vec<String>,
    pub(crate) destination_ips: Vec<String>,
}

impl Rule {
    fn read(input: &Input) -> Result<Self, ApiError> {
        let one_of = |field: &str, allowed: &[&str]| {
            let value = required(field, input.text(field)?)?;
            if !allowed.contains(&value) {
                return Err(ApiError::invalid(
                    field,
                    format!("must be one of {}", allowed.join(", ")),
                ));
            }
            Ok(value.to_owned())
        };
        let rule = Self {
            description: input.text("description")?.map(str::to_owned),
            direction: one_of("direction", &["in", "out"])?,
            protocol: one_of("protocol", &["tcp", "udp", "icmp", "esp", "gre"])?,
            port: input.text("port")?.map(str::to_owned),
            source_ips: read_cidrs(input, "source_ips")?,
            destination_ips: read_cidrs(input, "destination_ips")?,
        };
        rule.check()?;
        Ok(rule)
    }

    fn check(&self) -> Result<(), ApiError> {
        if self
            .description
            .as_ref()
            .is_some_and(|text| text.len() > 255)
        {
            return Err(ApiError::invalid("description", "is too long"));
        }
        let with_port = matches!(self.protocol.as_str(), "tcp" | "udp");
        match &self.port {
            Some(port) if with_port => check_port(port)?,
            None if !with_port => {}
            Some(_) => {
                return Err(ApiError::invalid(
                    "port",
                    "is not allowed for this protocol",
                ));
            }
            None => return Err(ApiError::invalid("port", "is required for this protocol")),
        }
        let (needed, other) = match self.direction.as_str() {
            "in" => (("source_ips", &self.source_ips), &self.destination_ips),
            _ => (("destination_ips", &self.destination_ips), &self.source_ips),
        };
        if needed.1.is_empty() || !other.is_empty() {
            let complaint = format!(
                "must be given for direction {}, and nothing else",
                self.direction
            );
            return Err(ApiError::invalid(needed.0, complaint));
        }
        Ok(())
    }

    pub(crate) fn show(&self) -> Value {
        json!({
            "description": self.description,
            "direction": self.direction,
            "protocol": self.protocol,
            "port": self.port,
            "source_ips": self.source_ips,
            "destination_ips": self.destination_ips,
        })
    }
}

fn check_port(port: &str) -> Result<(), ApiError> {
    let (from, to) = port.split_once('-').unwrap_or((port, port));
    match (from.parse::<u16>(), to.parse::<u16>()) {
        (Ok(from), Ok(to)) if from > 0 && from <= to => Ok(()),
        _ if port == "any" => Ok(()),
        _ => Err(ApiError::invalid(
            "port",
            "is not a port or a range of ports",
        )),
    }
}

fn read_cidrs(input: &Input, field: &str) -> Result<Vec<String>, ApiError> {
    let cidrs = input.texts(field)?;
    if cidrs.len() > MAX_CIDRS {
        return Err(ApiError::invalid(
            field,
            format!("at most {MAX_CIDRS} CIDRs per rule"),
        ));
    }
    cidrs
        .iter()
        .map(|cidr| canonical_cidr(cidr))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| ApiError::invalid(field, "must hold networks in CIDR notation"))
}

/// The network in its canonical form (RFC 5952 for IPv6); nothing when host bits are set.
fn canonical_cidr(cidr: &str) -> Option<String> {
    let (address, length) = cidr.split_once('/')?;
    let (address, length) = (address.parse::<IpAddr>().ok()?, length.parse::<u32>().ok()?);
    let host_bits = match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32_u32.checked_sub(length)?),
        IpAddr::V6(v6) => (v6.to_bits(), 128_u32.checked_sub(length)?),
    };
    let mask = 1_u128
        .checked_shl(host_bits.1)
        .map_or(u128::MAX, |bit| bit - 1);
    (host_bits.0 & mask == 0).then(|| format!("{address}/{length}"))
}

/// The rules of a request, at most 50.
pub(crate) fn read_rules(input: &Input) -> Result<Vec<Rule>, ApiError> {
    let rules = input.objects("rules")?;
    if rules.len() > MAX_RULES {
        return Err(ApiError::invalid(
            "rules",
            format!("at most {MAX_RULES} rules per firewall"),
        ));
    }
    rules.iter().map(Rule::read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_written_in_canonical_form_and_host_bits_are_refused() {
        assert_eq!(canonical_cidr("10.0.0.0/8").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(canonical_cidr("0.0.0.0/0").as_deref(), Some("0.0.0.0/0"));
        assert_eq!(canonical_cidr("::/0").as_deref(), Some("::/0"));
        assert_eq!(
            canonical_cidr("2001:0db8:0:0::/64").as_deref(),
            Some("2001:db8::/64")
        );
        for bad in ["10.0.0.1/8", "10.0.0.1", "10.0.0.0/33", "x/8", "::1/64"] {
            assert_eq!(canonical_cidr(bad), None, "{bad}");
        }
    }

    #[test]
    fn ports_are_single_or_ranges() {
        assert!(
            ["22", "1-65535", "any"]
                .iter()
                .all(|port| check_port(port).is_ok())
        );
        assert!(
            ["0", "5-2", "ssh", "70000"]
                .iter()
                .all(|port| check_port(port).is_err())
        );
    }
}
