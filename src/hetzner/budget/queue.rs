//! The places of those who wait in one lane.
//!
//! A place is kept by name, from the first refusal until its owner is served or stays away too
//! long. How many stand ahead of one is a prefix sum over a Fenwick tree of numbered slots, so that
//! thousands of waiters cost a logarithm each; slots are numbered anew when they run out.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

/// Slots of an empty queue.
const MIN_SLOTS: usize = 64;

/// Waiters in the order of their first refusal.
#[derive(Default)]
pub(super) struct Queue {
    waiters: HashMap<Arc<str>, Waiter>,
    expiries: BTreeSet<(Instant, Arc<str>)>,
    taken: Fenwick,
    next_slot: usize,
}

struct Waiter {
    slot: usize,
    expires: Instant,
}

impl Queue {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiters.len()
    }

    /// How many stand ahead of `who`; of a newcomer, all.
    pub(super) fn ahead_of(&self, who: &str) -> usize {
        match self.waiters.get(who) {
            Some(waiter) => self.taken.before(waiter.slot),
            None => self.len(),
        }
    }

    /// Keeps the place of `who`, or gives the last one, until `expires`.
    pub(super) fn keep(&mut self, who: &str, expires: Instant) {
        if let Some((name, waiter)) = self.waiters.get_key_value(who) {
            let (name, slot) = (Arc::clone(name), waiter.slot);
            self.expiries.remove(&(waiter.expires, Arc::clone(&name)));
            self.expiries.insert((expires, Arc::clone(&name)));
            self.waiters.insert(name, Waiter { slot, expires });
            return;
        }
        if self.next_slot == self.taken.slots() {
            self.renumber();
        }
        let name: Arc<str> = who.into();
        self.taken.add(self.next_slot, 1);
        self.expiries.insert((expires, Arc::clone(&name)));
        self.waiters.insert(
            name,
            Waiter {
                slot: self.next_slot,
                expires,
            },
        );
        self.next_slot += 1;
    }

    /// Gives up the place of `who`.
    pub(super) fn leave(&mut self, who: &str) {
        if let Some((name, waiter)) = self.waiters.remove_entry(who) {
            self.taken.add(waiter.slot, -1);
            self.expiries.remove(&(waiter.expires, name));
        }
    }

    /// Gives up the places of those who stayed away.
    pub(super) fn expire(&mut self, now: Instant) {
        while self
            .expiries
            .first()
            .is_some_and(|(expires, _)| *expires <= now)
        {
            if let Some((_, name)) = self.expiries.pop_first()
                && let Some(waiter) = self.waiters.remove(&name)
            {
                self.taken.add(waiter.slot, -1);
            }
        }
    }

    /// Numbers the slots anew, in order, with room for as many again.
    fn renumber(&mut self) {
        let mut order: Vec<&mut Waiter> = self.waiters.values_mut().collect();
        order.sort_unstable_by_key(|waiter| waiter.slot);
        self.taken = Fenwick::with_slots(MIN_SLOTS.max(2 * order.len()));
        self.next_slot = order.len();
        for (slot, waiter) in order.into_iter().enumerate() {
            waiter.slot = slot;
            self.taken.add(slot, 1);
        }
    }
}

/// Prefix sums over slots, each of which holds 0 or 1.
#[derive(Default)]
struct Fenwick {
    sums: Vec<isize>,
}

impl Fenwick {
    fn with_slots(slots: usize) -> Self {
        Self {
            sums: vec![0; slots],
        }
    }

    fn slots(&self) -> usize {
        self.sums.len()
    }

    fn add(&mut self, slot: usize, change: isize) {
        let mut at = slot;
        while let Some(sum) = self.sums.get_mut(at) {
            *sum += change;
            at |= at + 1;
        }
    }

    /// The sum of the slots below `slot`.
    fn before(&self, slot: usize) -> usize {
        let mut sum = 0;
        let mut end = slot;
        while end > 0 {
            sum += self.sums[end - 1];
            end &= end - 1;
        }
        usize::try_from(sum).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[derive(Clone, Debug)]
    enum Act {
        Keep(u8, u64),
        Leave(u8),
        Expire(u64),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (any::<u8>(), 0u64..500).prop_map(|(who, at)| Act::Keep(who, at)),
            2 => any::<u8>().prop_map(Act::Leave),
            1 => (0u64..400).prop_map(Act::Expire),
        ]
    }

    proptest! {
        #[test]
        fn queue_keeps_the_order_of_a_plain_list(acts in prop::collection::vec(act(), 1..600)) {
            let start = Instant::now();
            let at = |ms| start + Duration::from_millis(ms);
            let mut queue = Queue::default();
            let mut list: Vec<(u8, u64)> = Vec::new();
            for act in acts {
                match act {
                    Act::Keep(who, expires) => {
                        queue.keep(&who.to_string(), at(expires));
                        match list.iter_mut().find(|(name, _)| *name == who) {
                            Some(entry) => entry.1 = expires,
                            None => list.push((who, expires)),
                        }
                    }
                    Act::Leave(who) => {
                        queue.leave(&who.to_string());
                        list.retain(|(name, _)| *name != who);
                    }
                    Act::Expire(now) => {
                        queue.expire(at(now));
                        list.retain(|(_, expires)| *expires > now);
                    }
                }
                prop_assert_eq!(queue.len(), list.len());
                for (rank, (who, _)) in list.iter().enumerate() {
                    prop_assert_eq!(queue.ahead_of(&who.to_string()), rank);
                }
            }
        }
    }
}
