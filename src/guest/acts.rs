//! SSH acts beside the reconcilers: one at a time for each key, a bounded number overall.
//!
//! A reconcile never waits for a server. It starts an act here and returns; when the act is over,
//! its key comes out as an event, and the next reconcile takes the result. A result is never
//! lost: no other act of that key starts before it was taken.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;

/// An act ended in a panic; what it had done until then is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the act panicked")]
pub struct Panicked;

/// Running acts and results that nobody has taken yet. Dropping it cancels every act.
pub struct Acts<K, R> {
    slots: Arc<Mutex<Slots<K, R>>>,
    permits: Arc<Semaphore>,
    finished: mpsc::UnboundedSender<K>,
}

struct Slots<K, R> {
    by_key: HashMap<K, Slot<R>>,
    /// Tells an act apart from a forgotten one of the same key.
    next_run: u64,
}

enum Slot<R> {
    Running { run: u64, task: AbortHandle },
    Done(Result<R, Panicked>),
}

impl<K, R> Acts<K, R>
where
    K: Clone + Eq + Hash + Send + 'static,
    R: Send + 'static,
{
    /// A pool in which at most `limit` acts run at once; the others wait in order.
    ///
    /// The receiver tells the key of each act that ended.
    pub fn new(limit: usize) -> (Self, mpsc::UnboundedReceiver<K>) {
        let (finished, events) = mpsc::unbounded_channel();
        let slots = Slots {
            by_key: HashMap::new(),
            next_run: 0,
        };
        let acts = Self {
            slots: Arc::new(Mutex::new(slots)),
            permits: Arc::new(Semaphore::new(limit)),
            finished,
        };
        (acts, events)
    }

    /// Starts an act, unless one of this key runs or its result waits to be taken.
    pub fn start(&self, key: K, act: impl Future<Output = R> + Send + 'static) -> bool {
        let mut slots = lock(&self.slots);
        if slots.by_key.contains_key(&key) {
            return false;
        }
        let run = slots.next_run;
        slots.next_run += 1;
        // The act cannot report before this lock is given back, so its slot is there by then.
        let task = tokio::spawn(self.bounded(key.clone(), run, act)).abort_handle();
        slots.by_key.insert(key, Slot::Running { run, task });
        true
    }

    fn bounded(
        &self,
        key: K,
        run: u64,
        act: impl Future<Output = R> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (slots, permits) = (self.slots.clone(), self.permits.clone());
        let finished = self.finished.clone();
        async move {
            // The semaphore is never closed; without a permit there would be no bound, not no act.
            let permit = permits.acquire_owned().await;
            let outcome = AssertUnwindSafe(act).catch_unwind().await;
            drop(permit);
            let outcome = outcome.map_err(|_| Panicked);
            if lock(&slots).finish(&key, run, outcome) {
                // A receiver that is gone means that the operator stops.
                let _ = finished.send(key);
            }
        }
    }

    /// Takes the result of an act that ended.
    pub fn take_result(&self, key: &K) -> Option<Result<R, Panicked>> {
        let mut slots = lock(&self.slots);
        match slots.by_key.remove(key)? {
            Slot::Done(outcome) => Some(outcome),
            running @ Slot::Running { .. } => {
                slots.by_key.insert(key.clone(), running);
                None
            }
        }
    }

    /// Says whether an act of this key runs or waits for its turn.
    pub fn is_running(&self, key: &K) -> bool {
        matches!(
            lock(&self.slots).by_key.get(key),
            Some(Slot::Running { .. })
        )
    }

    /// How many acts run or wait for their turn.
    pub fn running(&self) -> usize {
        let slots = lock(&self.slots);
        let running = |slot: &&Slot<R>| matches!(slot, Slot::Running { .. });
        slots.by_key.values().filter(running).count()
    }

    /// Cancels the act of a key, or drops its result: its instance is gone.
    pub fn forget(&self, key: &K) {
        if let Some(Slot::Running { task, .. }) = lock(&self.slots).by_key.remove(key) {
            task.abort();
        }
    }
}

impl<K: Eq + Hash, R> Slots<K, R> {
    /// Stores an outcome, unless the act was forgotten.
    fn finish(&mut self, key: &K, run: u64, outcome: Result<R, Panicked>) -> bool {
        match self.by_key.get_mut(key) {
            Some(slot) if slot.is_run(run) => {
                *slot = Slot::Done(outcome);
                true
            }
            _ => false,
        }
    }
}

impl<R> Slot<R> {
    fn is_run(&self, this: u64) -> bool {
        matches!(self, Self::Running { run, .. } if *run == this)
    }
}

impl<K, R> Drop for Acts<K, R> {
    fn drop(&mut self) {
        for (_, slot) in lock(&self.slots).by_key.drain() {
            if let Slot::Running { task, .. } = slot {
                task.abort();
            }
        }
    }
}

impl<K, R> fmt::Debug for Acts<K, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acts")
            .field("slots", &lock(&self.slots).by_key.len())
            .finish_non_exhaustive()
    }
}

/// No act runs while the lock is held, so a poisoned one still guards a whole map.
fn lock<K, R>(slots: &Mutex<Slots<K, R>>) -> MutexGuard<'_, Slots<K, R>> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;
    use tokio::sync::{Notify, oneshot};
    use tokio::time::timeout;

    const DEADLINE: Duration = Duration::from_secs(20);

    async fn next<K>(events: &mut mpsc::UnboundedReceiver<K>) -> K {
        timeout(DEADLINE, events.recv()).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_result_comes_back_as_an_event_and_is_taken_once() {
        let (acts, mut events) = Acts::new(4);
        assert!(acts.start("a", async { 7 }));
        assert_eq!(next(&mut events).await, "a");
        assert_eq!(acts.take_result(&"a"), Some(Ok(7)));
        assert_eq!(acts.take_result(&"a"), None);
    }

    #[tokio::test]
    async fn a_key_has_one_act_at_a_time_and_no_result_is_overwritten() {
        let (acts, mut events) = Acts::new(4);
        let (go, wait) = oneshot::channel();
        assert!(acts.start("a", async { wait.await.unwrap() }));
        assert!(!acts.start("a", async { 2 }));
        assert!(acts.is_running(&"a"));
        assert_eq!(acts.take_result(&"a"), None);
        go.send(1).unwrap();
        next(&mut events).await;
        assert!(
            !acts.start("a", async { 3 }),
            "its result was not taken yet"
        );
        assert_eq!(acts.take_result(&"a"), Some(Ok(1)));
        assert!(acts.start("a", async { 4 }));
        next(&mut events).await;
        assert_eq!(acts.take_result(&"a"), Some(Ok(4)));
    }

    #[tokio::test]
    async fn no_more_acts_run_at_once_than_the_limit() {
        let (acts, mut events) = Acts::new(3);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for key in 0..30 {
            let (now, most) = (now.clone(), most.clone());
            acts.start(key, async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                now.fetch_sub(1, Ordering::SeqCst);
            });
        }
        assert_eq!(acts.running(), 30);
        for _ in 0..30 {
            next(&mut events).await;
        }
        assert_eq!(most.load(Ordering::SeqCst), 3);
        assert_eq!(acts.running(), 0);
    }

    #[tokio::test]
    async fn a_panic_becomes_a_result_and_gives_its_place_back() {
        let (acts, mut events) = Acts::<_, ()>::new(1);
        acts.start("a", async { panic!("on purpose") });
        assert_eq!(next(&mut events).await, "a");
        assert_eq!(acts.take_result(&"a"), Some(Err(Panicked)));
        acts.start("b", async {});
        assert_eq!(next(&mut events).await, "b");
    }

    #[tokio::test]
    async fn a_forgotten_act_is_cancelled_and_tells_nothing() {
        struct Tell(Arc<Notify>);
        impl Drop for Tell {
            fn drop(&mut self) {
                self.0.notify_one();
            }
        }
        let (acts, mut events) = Acts::new(2);
        let gone = Arc::new(Notify::new());
        let (forgotten, dropped) = (Tell(gone.clone()), Tell(gone.clone()));
        let forever = |held: Tell| async move {
            let _held = held;
            std::future::pending::<u8>().await
        };
        acts.start("a", forever(forgotten));
        acts.forget(&"a");
        timeout(DEADLINE, gone.notified()).await.unwrap();
        assert!(acts.start("a", async { 2 }));
        next(&mut events).await;
        assert_eq!(acts.take_result(&"a"), Some(Ok(2)));

        acts.start("b", forever(dropped));
        drop(acts);
        timeout(DEADLINE, gone.notified()).await.unwrap();
        assert!(timeout(DEADLINE, events.recv()).await.unwrap().is_none());
    }
}
