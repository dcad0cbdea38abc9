//! Tasks that end with their fleet at the latest, and whose end can be awaited.

use std::future::Future;
use std::sync::Mutex;

use tokio::sync::{mpsc, watch};

use crate::machines::fleet::lock;

/// The tasks of one fleet.
pub(crate) struct Tasks {
    stop: watch::Sender<bool>,
    /// Held by every task, so that the end of the last one can be seen.
    alive: Mutex<Option<mpsc::Sender<()>>>,
    ended: tokio::sync::Mutex<mpsc::Receiver<()>>,
}

impl Tasks {
    pub(crate) fn new() -> Self {
        let (alive, ended) = mpsc::channel(1);
        Self {
            stop: watch::Sender::new(false),
            alive: Mutex::new(Some(alive)),
            ended: tokio::sync::Mutex::new(ended),
        }
    }

    /// Runs a task that ends with the fleet at the latest.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let Some(alive) = lock(&self.alive).clone() else {
            return;
        };
        let mut stop = self.stop.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = task => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
            drop(alive);
        });
    }

    /// Ends all tasks, and lets no new one begin.
    pub(crate) fn stop(&self) {
        lock(&self.alive).take();
        self.stop.send_replace(true);
    }

    /// Returns once all tasks have ended.
    pub(crate) async fn gone(&self) {
        while self.ended.lock().await.recv().await.is_some() {}
    }
}
