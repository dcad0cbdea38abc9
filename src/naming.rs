//! Names of servers at Hetzner.
//!
//! A name is the one thing that keeps two servers from standing for one incarnation: Hetzner
//! refuses a second server of the same name in a project. So it derives from nothing but the
//! fleet, the instance's namespace and name, and the incarnation; two different instances never
//! share one, and it is always a host name that Hetzner accepts (RFC 1123).

use sha2::{Digest, Sha256};

/// The longest label of a host name, in bytes (RFC 1123, section 2.1).
const MAX_NAME: usize = 63;
/// How many symbols of the hash stand in a name; five bits each.
const HASH_SYMBOLS: u32 = 10;
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// The name of the server of one incarnation: `<name, cut>-<hash>-<incarnation>`.
///
/// The hash covers fleet, namespace and the whole name, so what is cut off or replaced in the
/// readable part costs no distinctness.
pub fn server_name(fleet: &str, namespace: &str, name: &str, incarnation: u32) -> String {
    let tail = format!("-{}-{incarnation}", instance_hash(fleet, namespace, name));
    let head = readable(name, MAX_NAME - tail.len());
    format!("{head}{tail}")
}

/// Ten symbols that stand for an instance of a fleet (50 bits of SHA-256).
pub fn instance_hash(fleet: &str, namespace: &str, name: &str) -> String {
    short_hash(&["instance", fleet, namespace, name])
}

/// Ten symbols that stand for a fleet, for names that several fleets share a project with.
pub fn fleet_hash(fleet: &str) -> String {
    short_hash(&["fleet", fleet])
}

/// The name of the SSH key that marks a project as this fleet's.
pub fn key_name(fleet: &str) -> String {
    format!("agentfleet-{}", fleet_hash(fleet))
}

/// The name of a class's firewall: `agentfleet-<class, cut>-<hash>`, the same in each project.
pub fn firewall_name(fleet: &str, class: &str) -> String {
    let tail = format!("-{}", short_hash(&["firewall", fleet, class]));
    let head = "agentfleet-";
    format!(
        "{head}{}{tail}",
        readable(class, MAX_NAME - head.len() - tail.len())
    )
}

fn short_hash(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        // Each part goes in with its length: ("a", "bc") and ("ab", "c") must differ.
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    let digest = hasher.finalize();
    let bits = digest
        .iter()
        .take(8)
        .fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
    (0..HASH_SYMBOLS)
        .map(|at| char::from(ALPHABET[(bits >> (at * 5) & 31) as usize]))
        .collect()
}

/// The part of a Kubernetes name that a person recognises, as the start of a host name.
fn readable(name: &str, room: usize) -> String {
    let mapped: String = name
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .skip_while(|c| *c == '-')
        .take(room)
        .collect();
    match mapped.trim_end_matches('-') {
        "" => "agent".to_owned(),
        kept => kept.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_host_name(name: &str) -> bool {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        (1..=63).contains(&name.len())
            && name.chars().all(inner)
            && !name.starts_with('-')
            && !name.ends_with('-')
    }

    #[test]
    fn a_name_reads_as_instance_hash_and_incarnation() {
        let name = server_name("fleet-1", "customers", "rachel.8", 3);
        assert_eq!(
            name,
            format!(
                "rachel-8-{}-3",
                instance_hash("fleet-1", "customers", "rachel.8")
            )
        );
    }

    #[test]
    fn the_hash_of_an_instance_never_changes_between_releases() {
        // Another value would make every living server a stranger after an upgrade.
        assert_eq!(instance_hash("f", "ns", "n"), "9k6zjf95wf");
        assert_eq!(fleet_hash("f"), "58e2mpdtcm");
    }

    #[test]
    fn neighbours_that_read_alike_have_different_names() {
        let names = [
            server_name("f", "a", "b.c", 1),
            server_name("f", "a", "b-c", 1),
            server_name("f", "ab", ".c", 1),
            server_name("fa", "", "b.c", 1),
            server_name("f", "a", "b.c", 11),
        ];
        for (at, name) in names.iter().enumerate() {
            assert!(!names[..at].contains(name), "{name} twice");
        }
    }

    proptest! {
        #[test]
        fn every_name_is_a_host_name(
            fleet in ".{0,80}", namespace in "[a-z0-9-]{1,63}",
            name in "[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?", incarnation: u32,
        ) {
            let made = server_name(&fleet, &namespace, &name, incarnation);
            prop_assert!(is_host_name(&made), "{}", made);
        }

        #[test]
        fn every_firewall_has_a_host_name_of_its_own(one in "[ab.]{1,80}", other in "[ab.]{1,80}") {
            prop_assert!(is_host_name(&firewall_name("f", &one)));
            prop_assert_eq!(one == other, firewall_name("f", &one) == firewall_name("f", &other));
        }

        #[test]
        fn even_a_name_that_kubernetes_would_refuse_gives_a_host_name(name in ".{0,300}") {
            prop_assert!(is_host_name(&server_name("f", "ns", &name, u32::MAX)));
        }

        #[test]
        fn different_identities_have_different_names(
            one in ("[ab]{0,3}", "[ab.]{0,3}", "[ab.-]{0,80}", 0_u32..12),
            other in ("[ab]{0,3}", "[ab.]{0,3}", "[ab.-]{0,80}", 0_u32..12),
        ) {
            let name = |(fleet, namespace, name, incarnation): &(String, String, String, u32)| {
                server_name(fleet, namespace, name, *incarnation)
            };
            prop_assert_eq!(one == other, name(&one) == name(&other));
        }
    }
}
