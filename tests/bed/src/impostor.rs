//! Somebody at a server's address, with a host key of his own: he lets anybody log in, writes down all he hears and says what he was taught.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::keys::PrivateKey;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::server::{
    Auth, ChannelOpenHandle, Config, Handle, Handler, Msg, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::failure::Outcome;
use crate::wait;

/// A command that was given to him, with all that came on its standard input.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The command.
    pub command: String,
    /// Its standard input, as far as it came.
    pub input: Vec<u8>,
}

/// He is there until this goes.
pub struct Impostor {
    heard: Arc<Mutex<Vec<Heard>>>,
    answer: watch::Sender<Option<Vec<u8>>>,
    task: JoinHandle<()>,
}

impl Impostor {
    /// Takes an address as soon as it is free.
    ///
    /// # Errors
    /// Fails when it does not become free.
    pub async fn at(address: SocketAddr) -> Outcome<Self> {
        let listener = wait::wait_for("the address is free", async || {
            Ok(TcpListener::bind(address).await.ok())
        })
        .await?;
        let (heard, answer) = (
            Arc::<Mutex<Vec<Heard>>>::default(),
            watch::Sender::new(None),
        );
        let ear = Ear {
            heard: Arc::clone(&heard),
            answer: answer.subscribe(),
            at: None,
        };
        let task = tokio::spawn(listen(listener, ear));
        Ok(Self {
            heard,
            answer,
            task,
        })
    }

    /// What he says from now on, to whatever he is asked; until then he lets everybody wait.
    pub fn says(&self, answer: Vec<u8>) {
        self.answer.send_replace(Some(answer));
    }

    /// All commands that he was given.
    pub fn heard(&self) -> Vec<Heard> {
        self.heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(listener: TcpListener, ear: Ear) {
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&rand::random()));
    let config = Arc::new(Config {
        keys: vec![key],
        auth_rejection_time: Duration::ZERO,
        ..Config::default()
    });
    let mut sessions = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (config, ear) = (Arc::clone(&config), ear.clone());
        sessions.spawn(async move {
            // Whoever does not believe him hangs up, which is no news.
            if let Ok(session) = russh::server::run_stream(config, stream, ear).await {
                let _ended = session.await;
            }
        });
    }
}

/// One session with him.
#[derive(Clone)]
struct Ear {
    heard: Arc<Mutex<Vec<Heard>>>,
    answer: watch::Receiver<Option<Vec<u8>>>,
    /// Which of what was heard is this session's.
    at: Option<usize>,
}

impl Ear {
    fn notes<T>(&self, write: impl FnOnce(&mut Vec<Heard>) -> T) -> T {
        write(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Handler for Ear {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        _user: &str,
        _key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        _channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let command = String::from_utf8_lossy(command).into_owned();
        self.at = Some(self.notes(|heard| {
            heard.push(Heard {
                command,
                input: Vec::new(),
            });
            heard.len() - 1
        }));
        session.channel_success(channel)
    }

    async fn data(
        &mut self,
        _channel: ChannelId,
        data: &[u8],
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(at) = self.at {
            self.notes(|heard| heard[at].input.extend_from_slice(data));
        }
        Ok(())
    }

    async fn channel_eof(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        tokio::spawn(say(session.handle(), channel, self.answer.clone()));
        Ok(())
    }
}

/// Says it when he knows it; an error means that nobody listens any more.
async fn say(to: Handle, channel: ChannelId, mut answer: watch::Receiver<Option<Vec<u8>>>) {
    let Ok(answer) = answer
        .wait_for(Option::is_some)
        .await
        .map(|found| found.clone())
    else {
        return;
    };
    let _ = to.data(channel, answer.unwrap_or_default()).await;
    let _ = to.eof(channel).await;
    let _ = to.exit_status_request(channel, 0).await;
    let _ = to.close(channel).await;
}
