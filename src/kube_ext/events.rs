//! Kubernetes Events for people, on transitions only, and never in the way of the work.
//!
//! Publishing puts an event into a bounded queue and returns; [`EventWriter::run`] writes them one after another. An event that was told a short
//! while ago, word for word, is not told again, unless the same matter stood otherwise in between; one that finds the queue full is dropped,
//! because an event is a courtesy and the status is the record. The log tells the first that was dropped and, later, how many were. What must be
//! told whatever becomes of this process is [delivered](Events::deliver), and its teller remembers whether it was.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, Recorder, Reporter};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{call, error_chain};

const CONTROLLER: &str = "agentfleet";
const QUEUED_MAX: usize = 2048;
/// How long the same words about the same object are not said again.
const REPEAT_WINDOW: Duration = Duration::from_mins(10);
/// Events above this size are refused by the API server.
const NOTE_MAX_BYTES: usize = 1024;

/// Where transitions are told; cheap to clone.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<Queued>,
    told: Arc<Mutex<HashMap<Told, Instant>>>,
    dropped: Arc<AtomicU64>,
    repeat_window: Duration,
}

/// What makes an event the same as an earlier one.
#[derive(PartialEq, Eq, Hash)]
struct Told {
    matter: Matter,
    reason: String,
    note: Option<String>,
}

/// UID and name of an object, and what of it an event is about. A cluster-scoped object that was made again has another UID; its kind is not
/// needed beside that.
type Matter = (Option<String>, Option<String>, String);

/// An event on its way.
struct Queued {
    event: Event,
    object: ObjectReference,
    /// Who waits until it is written.
    written: Option<oneshot::Sender<()>>,
}

/// Writes what [`Events`] were told.
pub struct EventWriter {
    client: Client,
    reporter: Reporter,
    queue: mpsc::Receiver<Queued>,
    dropped: Arc<AtomicU64>,
}

impl Events {
    /// Makes the two ends of the queue; `instance` is the pod's name, shown as the events' reporting instance.
    pub fn new(client: Client, instance: &str) -> (Self, EventWriter) {
        let (sender, receiver) = mpsc::channel(QUEUED_MAX);
        let reporter = Reporter {
            controller: CONTROLLER.into(),
            instance: Some(instance.into()),
        };
        let dropped = Arc::default();
        (
            Self {
                queue: sender,
                told: Arc::default(),
                dropped: Arc::clone(&dropped),
                repeat_window: REPEAT_WINDOW,
            },
            EventWriter {
                client,
                reporter,
                queue: receiver,
                dropped,
            },
        )
    }

    /// Tells an event about an object, without waiting; its note is cut to what the API server takes.
    pub fn publish(&self, object: &ObjectReference, event: Event) {
        let event = cut(event);
        if !self.told_already(object, &event) {
            self.enqueue(object, event, None);
        }
    }

    /// Tells an event about an object, though the same was told before; answers whether it is written.
    pub async fn deliver(&self, object: &ObjectReference, event: Event) -> bool {
        let (sender, written) = oneshot::channel();
        self.enqueue(object, cut(event), Some(sender));
        written.await.is_ok()
    }

    fn enqueue(
        &self,
        object: &ObjectReference,
        event: Event,
        written: Option<oneshot::Sender<()>>,
    ) {
        let queued = Queued {
            event,
            object: object.clone(),
            written,
        };
        let refused = self.queue.try_send(queued).is_err();
        if refused && self.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(object = object.name, "event dropped: too many wait");
        }
    }

    fn told_already(&self, object: &ObjectReference, event: &Event) -> bool {
        let now = Instant::now();
        let key = Told {
            matter: (
                object.uid.clone(),
                object.name.clone(),
                event.action.clone(),
            ),
            reason: event.reason.clone(),
            note: event.note.clone(),
        };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|told, at| {
            let stands = told.matter != key.matter || told.reason == key.reason;
            stands && now.duration_since(*at) < self.repeat_window
        });
        match told.entry(key) {
            std::collections::hash_map::Entry::Occupied(_) => true,
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(now);
                false
            }
        }
    }
}

fn cut(mut event: Event) -> Event {
    if let Some(note) = &mut event.note {
        note.truncate(note.floor_char_boundary(NOTE_MAX_BYTES));
    }
    event
}

impl EventWriter {
    /// Writes events until the last [`Events`] is gone and the queue is empty.
    pub async fn run(mut self) {
        while let Some(queued) = self.queue.recv().await {
            let Queued {
                event,
                object,
                written,
            } = queued;
            if self.queue.is_empty() {
                let dropped = self.dropped.swap(0, Ordering::Relaxed);
                if dropped > 0 {
                    tracing::warn!(dropped, "events are written again");
                }
            }
            // A recorder for each: one that lives on answers a new message under a known reason by counting up the old message.
            let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
            match call("POST events", recorder.publish(&event, &object)).await {
                // Nobody may wait any more.
                Ok(()) => drop(written.map(|written| written.send(()))),
                Err(error) => tracing::warn!(
                    reason = event.reason,
                    object = object.name,
                    error = error_chain(&error),
                    "event not written"
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::runtime::events::EventType;

    use super::*;

    fn queue() -> (Events, mpsc::Receiver<Queued>) {
        let (sender, receiver) = mpsc::channel(QUEUED_MAX);
        (
            Events {
                queue: sender,
                told: Arc::default(),
                dropped: Arc::default(),
                repeat_window: REPEAT_WINDOW,
            },
            receiver,
        )
    }

    fn object(uid: &str) -> ObjectReference {
        ObjectReference {
            uid: Some(uid.into()),
            name: Some("one".into()),
            ..ObjectReference::default()
        }
    }

    fn event(reason: &str, note: &str) -> Event {
        Event {
            type_: EventType::Normal,
            reason: reason.into(),
            note: Some(note.into()),
            action: "Create".into(),
            secondary: None,
        }
    }

    #[test]
    fn same_words_about_the_same_object_are_told_once_per_window() {
        let (mut events, queue) = queue();

        events.publish(&object("a"), event("Ready", "agent answers"));
        events.publish(&object("a"), event("Ready", "agent answers"));
        assert_eq!(queue.len(), 1);

        events.repeat_window = Duration::ZERO;
        events.publish(&object("a"), event("Ready", "agent answers"));
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn what_is_so_again_after_it_was_otherwise_is_told_again_and_no_other_matter_makes_it_so() {
        let (events, queue) = queue();
        let about = |action: &str, reason| Event {
            action: action.into(),
            ..event(reason, "x")
        };

        for reason in ["Serving", "Restarting", "Serving"] {
            events.publish(&object("a"), about("Ready", reason));
        }
        assert_eq!(queue.len(), 3);

        events.publish(&object("a"), about("UpToDate", "WentBack"));
        events.publish(&object("b"), about("Ready", "Restarting"));
        events.publish(&object("a"), about("Ready", "Serving"));
        assert_eq!(queue.len(), 5);
    }

    #[test]
    fn other_object_reason_or_message_is_another_event() {
        let (events, queue) = queue();

        events.publish(&object("a"), event("Ready", "x"));
        events.publish(&object("b"), event("Ready", "x"));
        events.publish(&object("a"), event("Failed", "x"));
        events.publish(&object("a"), event("Ready", "y"));

        assert_eq!(queue.len(), 4);
    }

    #[test]
    fn full_queue_drops_and_never_blocks() {
        let (events, queue) = queue();

        for number in 0..=QUEUED_MAX {
            events.publish(&object("a"), event("Ready", &number.to_string()));
        }

        assert_eq!(queue.len(), QUEUED_MAX);
        assert_eq!(events.dropped.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn what_is_delivered_was_written_and_what_is_not_is_told_to_its_teller() {
        for written in [true, false] {
            let (events, mut queue) = queue();
            events.publish(&object("a"), event("Ready", "x"));
            let writer = async {
                queue.recv().await.unwrap();
                let again = queue.recv().await.unwrap();
                if written {
                    again.written.unwrap().send(()).unwrap();
                }
            };
            let object = object("a");
            let told = events.deliver(&object, event("Ready", "x"));
            assert_eq!(tokio::join!(told, writer).0, written);
        }
    }

    #[test]
    fn long_note_is_cut_between_characters() {
        let (events, mut queue) = queue();

        events.publish(&object("a"), event("Failed", &"é".repeat(NOTE_MAX_BYTES)));

        let sent = queue.try_recv().unwrap();
        assert_eq!(sent.event.note.unwrap().len(), NOTE_MAX_BYTES);
    }
}
