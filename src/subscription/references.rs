//! Which subscriptions are the same one in the billing system, kept beside their store by the watch that fills it: to look through all of them for
//! each of them is much for a large fleet.
//!
//! A moment lies between the two, so whoever asks looks up in the store what is named here.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kube::runtime::{reflector::ObjectRef, watcher::Event};

use crate::api::{ExternalRef, Subscription};

/// Subscriptions by what they are in the billing system.
#[derive(Clone, Default)]
pub struct References(Arc<Mutex<Lists>>);

#[derive(Default)]
struct Lists {
    shown: List,
    /// A list that is not complete yet.
    coming: List,
}

#[derive(Default)]
struct List {
    same: HashMap<ExternalRef, HashSet<ObjectRef<Subscription>>>,
    /// What each of them is, to take it out of the above.
    what: HashMap<ObjectRef<Subscription>, ExternalRef>,
}

impl References {
    /// Those that are the same one.
    pub fn same(&self, external: &ExternalRef) -> Vec<ObjectRef<Subscription>> {
        let lists = self.lists();
        let same = lists.shown.same.get(external).into_iter();
        same.flatten().cloned().collect()
    }

    /// Takes in what the watch has shown.
    pub fn follow(&self, event: &Event<Subscription>) {
        let Lists { shown, coming } = &mut *self.lists();
        match event {
            Event::Init => *coming = List::default(),
            Event::InitApply(one) => coming.put(one),
            Event::InitDone => *shown = std::mem::take(coming),
            Event::Apply(one) => shown.put(one),
            Event::Delete(one) => shown.forget(&ObjectRef::from_obj(one)),
        }
    }

    fn lists(&self) -> MutexGuard<'_, Lists> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl List {
    fn put(&mut self, one: &Subscription) {
        let who = ObjectRef::from_obj(one);
        self.forget(&who);
        if let Some(external) = &one.spec.external_ref {
            let same = self.same.entry(external.clone()).or_default();
            same.insert(who.clone());
            self.what.insert(who, external.clone());
        }
    }

    fn forget(&mut self, who: &ObjectRef<Subscription>) {
        let Some(external) = self.what.remove(who) else {
            return;
        };
        if let Some(same) = self.same.get_mut(&external) {
            same.remove(who);
            if same.is_empty() {
                self.same.remove(&external);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::reflector;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// What a watch may show of subscriptions by number, each with the number of what it is in the billing system, if it says that.
    #[derive(Clone, Debug)]
    enum Shown {
        Written(u8, Option<u8>),
        Deleted(u8),
        /// Whatever is not in it is gone.
        Listed(Vec<(u8, Option<u8>)>),
    }

    fn external(id: u8) -> ExternalRef {
        ExternalRef {
            system: "stripe".into(),
            id: id.to_string(),
        }
    }

    fn subscription(name: u8, id: Option<u8>) -> Subscription {
        let object = json!({
            "apiVersion": "agentfleet.dev/v1alpha1", "kind": "Subscription",
            "metadata": {"namespace": "agents", "name": name.to_string()},
            "spec": {"customerId": "cus_1", "plan": "small", "state": "Active", "externalRef": id.map(external)},
        });
        serde_json::from_value(object).unwrap()
    }

    fn events(shown: &Shown) -> Vec<Event<Subscription>> {
        match shown {
            Shown::Written(name, id) => vec![Event::Apply(subscription(*name, *id))],
            Shown::Deleted(name) => vec![Event::Delete(subscription(*name, None))],
            Shown::Listed(all) => {
                let listed = all.iter().map(|(name, id)| subscription(*name, *id));
                let listed = listed.map(Event::InitApply);
                let first = std::iter::once(Event::Init);
                first.chain(listed).chain([Event::InitDone]).collect()
            }
        }
    }

    fn shown() -> impl Strategy<Value = Shown> {
        let one = || (0..6_u8, proptest::option::of(0..3_u8));
        prop_oneof![
            one().prop_map(|(name, id)| Shown::Written(name, id)),
            (0..6_u8).prop_map(Shown::Deleted),
            proptest::collection::vec(one(), 0..6).prop_map(Shown::Listed),
        ]
    }

    proptest! {
        #[test]
        fn those_that_are_the_same_are_found_as_by_looking_through_the_store(
            all in proptest::collection::vec(shown(), 0..20)
        ) {
            let (references, (store, mut writer)) = (References::default(), reflector::store());
            for event in all.iter().flat_map(events) {
                references.follow(&event);
                writer.apply_watcher_event(&event);
                for id in 0..3 {
                    let same = store.state_filter(|one: &Subscription| one.spec.external_ref == Some(external(id)));
                    let same: HashSet<_> = same.iter().map(|one| ObjectRef::from_obj(&**one)).collect();
                    let found = references.same(&external(id));
                    prop_assert_eq!(HashSet::from_iter(found), same);
                }
            }
            let Lists { shown, .. } = &*references.lists();
            prop_assert!(shown.same.values().all(|same| !same.is_empty()));
        }
    }
}
