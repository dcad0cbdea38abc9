//! Servers for the tests: an SSH server in this process that answers like a guest, or badly, or
//! stands in the middle.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use russh::keys::{Algorithm, PrivateKey, PublicKey};
use russh::server::{self, Auth, ChannelOpenHandle, Handle, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::host_key::HostKey;
use super::proof::proof_message;
use crate::keys::{MasterKey, ServerKeys};

pub(super) const FLEET: &str = "fleet-1";
pub(super) const SERVER: &str = "a-1";
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

pub(super) fn keys() -> ServerKeys {
    MasterKey::new(FLEET, &[7; 32]).unwrap().server_keys(SERVER)
}

pub(super) fn host_key() -> PrivateKey {
    PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap()
}

/// What a stand-in does with a command once its standard input is complete.
pub(super) enum Reply {
    Answer(Vec<u8>),
    /// Data without end.
    Endless,
    /// Lines on standard error without end.
    EndlessErrors,
    Hang,
    /// Some bytes, then the connection is gone.
    CutAfter(&'static str),
    /// All of it, but the command was never seen to exit.
    NoExit(Vec<u8>),
    /// All of it, but the command does not end.
    Lingers(Vec<u8>),
}

/// One command that arrived, with its standard input.
pub(super) type Act = (String, Vec<u8>);
type Script = dyn Fn(&Act) -> Reply + Send + Sync;

/// A server on a port of its own; gone when dropped.
pub(super) struct StandIn {
    pub(super) address: SocketAddr,
    pub(super) host_key: HostKey,
    acts: Arc<Mutex<Vec<Act>>>,
    begun: Arc<Mutex<Vec<String>>>,
    task: tokio::task::AbortHandle,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) struct Options {
    pub(super) host_keys: Vec<PrivateKey>,
    pub(super) accepts: Option<PublicKey>,
    /// Answers when the command arrives, and never reads standard input.
    pub(super) hasty: bool,
    /// Accepts no command at all.
    pub(super) refuses: bool,
}

impl Options {
    pub(super) fn new() -> Self {
        Self {
            host_keys: vec![host_key()],
            accepts: Some(keys().login.public_key().clone()),
            hasty: false,
            refuses: false,
        }
    }

    pub(super) async fn start(
        self,
        script: impl Fn(&Act) -> Reply + Send + Sync + 'static,
    ) -> StandIn {
        let acts = Arc::<Mutex<Vec<Act>>>::default();
        let begun = Arc::<Mutex<Vec<String>>>::default();
        let host_key = HostKey::from_public(self.host_keys[0].public_key())
            .unwrap_or_else(|_| HostKey::from_public(host_key().public_key()).unwrap());
        let config = Arc::new(server::Config {
            keys: self.host_keys,
            auth_rejection_time: Duration::ZERO,
            window_size: if self.hasty { 1024 } else { 2_097_152 },
            ..server::Config::default()
        });
        let guest = Guest {
            script: Arc::new(script),
            acts: acts.clone(),
            accepts: self.accepts,
            hasty: self.hasty,
            refuses: self.refuses,
            begun: begun.clone(),
            current: HashMap::new(),
        };
        let (address, task) = serve(move |stream| {
            let (config, guest) = (config.clone(), guest.clone());
            async move {
                // As sshd does; else each act waits for delayed acknowledgements.
                stream.set_nodelay(true).unwrap();
                if let Ok(session) = server::run_stream(config, stream, guest).await {
                    let _ = session.await;
                }
            }
        })
        .await;
        StandIn {
            address,
            host_key,
            acts,
            begun,
            task,
        }
    }
}

impl StandIn {
    pub(super) async fn new(script: impl Fn(&Act) -> Reply + Send + Sync + 'static) -> Self {
        Options::new().start(script).await
    }

    /// A server that treats each connection as told, below SSH.
    pub(super) async fn raw<F>(treat: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (address, task) = serve(treat).await;
        let host_key = HostKey::from_public(host_key().public_key()).unwrap();
        Self {
            address,
            host_key,
            acts: Arc::default(),
            begun: Arc::default(),
            task,
        }
    }

    /// Every command that arrived here so far.
    pub(super) fn acts(&self) -> Vec<Act> {
        self.acts.lock().unwrap().clone()
    }

    /// Every login, and every command as it began.
    pub(super) fn begun(&self) -> Vec<String> {
        self.begun.lock().unwrap().clone()
    }
}

async fn serve<F>(
    treat: impl Fn(TcpStream) -> F + Send + Sync + 'static,
) -> (SocketAddr, tokio::task::AbortHandle)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(treat(stream));
        }
    });
    (address, task.abort_handle())
}

/// Sends the same bytes until the peer is gone.
pub(super) async fn babble(mut stream: TcpStream, bytes: &'static [u8]) {
    while stream.write_all(bytes).await.is_ok() {}
}

/// An address where nothing listens.
pub(super) async fn dead_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// The answer of a guest that can prove `host_key`.
pub(super) fn greeting(nonce: &str, host_key: &HostKey, kinds: &[&str]) -> Value {
    let message = proof_message(FLEET, SERVER, nonce, host_key);
    let keys = keys();
    let mut macs = json!({});
    for kind in kinds {
        let key = match *kind {
            "boot" => &keys.boot_proof,
            _ => &keys.resume_proof,
        };
        macs[*kind] = hex::encode(key.mac(&[message.as_bytes()])).into();
    }
    json!({
        "protocol": 1, "guest": "0.1.0", "ok": true, "server": SERVER, "macs": macs,
        "progress": "1", "phase": "Installed", "steps": [], "armed": null, "everArmed": false,
        "epoch": 0, "applied": null, "unit": null,
    })
}

pub(super) fn nonce(act: &Act) -> String {
    let request: Value = serde_json::from_slice(&act.1).unwrap();
    request["nonce"].as_str().unwrap().to_owned()
}

#[derive(Clone)]
struct Guest {
    script: Arc<Script>,
    acts: Arc<Mutex<Vec<Act>>>,
    accepts: Option<PublicKey>,
    hasty: bool,
    refuses: bool,
    begun: Arc<Mutex<Vec<String>>>,
    current: HashMap<ChannelId, Act>,
}

impl Guest {
    fn act(&mut self, channel: ChannelId, handle: Handle) {
        let act = self.current.remove(&channel).unwrap_or_default();
        let reply = (self.script)(&act);
        self.acts.lock().unwrap().push(act);
        tokio::spawn(carry_out(reply, channel, handle));
    }
}

async fn carry_out(reply: Reply, channel: ChannelId, handle: Handle) {
    match reply {
        Reply::Answer(answer) => {
            let _ = handle.data(channel, answer).await;
            let _ = handle.eof(channel).await;
            let _ = handle.exit_status_request(channel, 0).await;
            let _ = handle.close(channel).await;
        }
        Reply::NoExit(answer) => {
            let _ = handle.data(channel, answer).await;
            let _ = handle.eof(channel).await;
            let _ = handle.close(channel).await;
        }
        Reply::Endless => while handle.data(channel, vec![b'x'; 16384]).await.is_ok() {},
        Reply::EndlessErrors => {
            while handle
                .extended_data(channel, 1, vec![b'x'; 16384])
                .await
                .is_ok()
            {}
        }
        Reply::Lingers(answer) => {
            let _ = handle.data(channel, answer).await;
        }
        Reply::Hang => {}
        Reply::CutAfter(start) => {
            let _ = handle.data(channel, start.as_bytes().to_vec()).await;
            let reason = russh::Disconnect::ConnectionLost;
            let _ = handle
                .disconnect(reason, String::new(), String::new())
                .await;
        }
    }
}

impl server::Handler for Guest {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        let known = match &self.accepts {
            Some(login) => login.key_data() == key.public_key.key_data(),
            None => true,
        };
        if known && user == super::transport::LOGIN {
            self.begun.lock().unwrap().push("login".into());
            Ok(Auth::Accept)
        } else {
            Ok(Auth::reject())
        }
    }

    async fn channel_open_session(
        &mut self,
        _channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        if self.refuses {
            return session.channel_failure(channel);
        }
        let verb = String::from_utf8_lossy(data).into_owned();
        self.begun.lock().unwrap().push(verb.clone());
        self.current.insert(channel, (verb, Vec::new()));
        if self.hasty {
            self.act(channel, session.handle());
        }
        session.channel_success(channel)
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        if let Some((_, stdin)) = self.current.get_mut(&channel) {
            stdin.extend_from_slice(data);
        }
        Ok(())
    }

    fn adjust_window(&mut self, _channel: ChannelId, current: u32) -> u32 {
        current
    }

    async fn channel_eof(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        if !self.hasty {
            self.act(channel, session.handle());
        }
        Ok(())
    }
}
