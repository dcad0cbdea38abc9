//! What this process remembers of a project between two looks, all of it found out through one token.
//!
//! It may be lost at any time: a new connection begins with nothing and asks again.

use std::{collections::BTreeMap, time::Instant};

use super::world::{KeyName, KeyView};
use crate::trouble::Troubles;

/// What is remembered of a project.
#[derive(Debug, Default)]
pub struct Memory {
    /// The SSH keys that carry our fleet, and when they were listed.
    pub keys: Option<(Instant, Vec<KeyView>)>,
    /// What became of a key that was asked for by id.
    pub by_id: Option<(i64, Option<KeyView>)>,
    /// What is known of the name of our key.
    pub key_name: KeyName,
    /// Servers that were asked for by id, and whether Hetzner showed them.
    pub answered: BTreeMap<i64, bool>,
    /// The public keys of people by name.
    pub admin_keys: BTreeMap<String, Option<String>>,
    /// Whether this process marked the key as its own.
    pub holds: bool,
    /// When another count of servers was written last.
    pub counted_at: Option<Instant>,
    /// Steps that failed.
    pub troubles: Troubles,
}

impl Memory {
    /// The keys were listed: whatever was asked because of an earlier list is asked again if need be.
    pub fn listed(&mut self, keys: Vec<KeyView>, holder: &str, begun: Instant) {
        self.found(&keys, holder);
        self.keys = Some((begun, keys));
        self.by_id = None;
        self.answered.clear();
        self.admin_keys.retain(|_, found| found.is_some());
        if let KeyName::Foreign(_) = self.key_name {
            self.key_name = KeyName::Taken;
        }
    }

    /// A key was asked for by id.
    pub fn looked_up(&mut self, id: i64, key: Option<KeyView>, holder: &str) {
        self.found(key.as_slice(), holder);
        self.by_id = Some((id, key));
    }

    /// The label of a key was written.
    pub fn marked(&mut self, id: i64, holder: &str, own: &str) {
        let asked = self.by_id.iter_mut().filter_map(|(_, key)| key.as_mut());
        let listed = self.keys.iter_mut().flat_map(|(_, keys)| keys);
        for key in asked.chain(listed).filter(|key| key.id == id) {
            key.ours = true;
            key.holder = Some(holder.to_owned());
        }
        self.holds = holder == own;
    }

    /// A key is there that was made, or found by name.
    pub fn gained(&mut self, key: KeyView, own: &str) {
        self.found(std::slice::from_ref(&key), own);
        self.key_name = KeyName::Free;
        if let Some((_, keys)) = &mut self.keys {
            keys.push(key);
        }
    }

    /// A request may have changed the keys: only a new list tells.
    pub fn doubt_keys(&mut self) {
        self.keys = None;
    }

    /// Our key is gone.
    pub fn lost_key(&mut self, id: i64) {
        if let Some((_, keys)) = &mut self.keys {
            keys.retain(|key| key.id != id);
        }
    }

    /// Seen under our own mark, it is ours; once two have met, it is nobody's.
    fn found(&mut self, keys: &[KeyView], own: &str) {
        let holders = || keys.iter().filter_map(|key| key.holder.as_deref());
        if holders().any(|holder| holder == super::plan::CONFLICT) {
            self.holds = false;
        } else if holders().any(|holder| holder == own) {
            self.holds = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(holder: &str) -> KeyView {
        KeyView {
            id: 7,
            ours: true,
            holder: Some(holder.into()),
        }
    }

    #[test]
    fn mark_of_this_process_is_known_once_written_or_seen() {
        let mut memory = Memory::default();
        memory.listed(vec![key("before")], "me", Instant::now());
        assert!(!memory.holds);
        memory.marked(7, "me", "me");
        assert!(memory.holds);
        memory.listed(vec![key("conflict")], "me", Instant::now());
        assert!(!memory.holds, "after a conflict it is taken over anew");
        memory.looked_up(7, Some(key("me")), "me");
        assert!(memory.holds);
    }

    #[test]
    fn new_list_asks_anew_what_an_old_one_left_open() {
        let mut memory = Memory {
            key_name: KeyName::Foreign(3),
            by_id: Some((7, None)),
            ..Memory::default()
        };
        memory.answered.insert(1, false);
        memory.admin_keys = [("there".into(), Some(String::new())), ("not".into(), None)].into();
        memory.listed(vec![], "me", Instant::now());
        assert_eq!(
            (
                memory.key_name,
                memory.by_id,
                memory.answered.len(),
                memory.admin_keys.len()
            ),
            (KeyName::Taken, None, 0, 1)
        );
    }
}
