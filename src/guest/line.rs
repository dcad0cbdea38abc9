//! A line to a guest: one SSH connection on which the login succeeded.
//!
//! The operator offers ed25519 host keys, curve25519 and strict key exchange only. Key exchange, login, sudo and the start of Python take longer
//! than most of what a guest is asked to do. So a line may carry one command after the other, and a command may be made ready on it: started,
//! and waiting for its standard input. Nobody can tell an idle line from a dead one, so it is believed for a moment only.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::{Duration, Instant};

use russh::client::{self, Msg};
use russh::keys::{Algorithm, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg, ChannelReadHalf, Preferred, compression, kex};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretSlice};
use tokio::net::TcpStream;

use super::host_key::HostKey;
use super::leash::Leash;
use super::protocol::{self, MAX_ANSWER, Verb};
use super::transport::{Call, LOGIN, Stage, TransportError};

/// How long a connection may take to come about: a server that boots swallows the first packet, and the system sends the next ones ever more
/// seldom.
const CONNECT: Duration = Duration::from_secs(2);
/// How long after an answer a line is believed to be whole.
pub const FRESH: Duration = Duration::from_secs(5);

/// How old a command that was made ready may be when something else is asked for over its line: a guest gives a command up whose input does not
/// come within 60 s, and what is asked for meanwhile may take 25 of them.
const READY: Duration = Duration::from_secs(30);

/// A command that was started, and waits for its standard input.
struct Ready<C> {
    verb: Verb,
    since: Instant,
    channel: C,
}

impl<C> Ready<C> {
    /// Whether it is this one, and stays one for so long as anything else may take.
    fn keeps(&self, verb: Verb, now: Instant) -> bool {
        self.verb == verb && now.duration_since(self.since) < READY
    }

    /// Whether it is this one, and is surely still there.
    fn is_there(&self, verb: Verb, now: Instant) -> bool {
        self.verb == verb && now.duration_since(self.since) < READY + protocol::MAX_WAIT
    }
}

/// A connection to a guest; dropping it ends it.
pub struct Line {
    session: client::Handle<Gate>,
    host_key: HostKey,
    ready: Option<Ready<Channel<Msg>>>,
    answered: Instant,
    #[expect(dead_code, reason = "its drop ends the connection")]
    leash: Leash,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line")
            .field("host_key", &self.host_key)
            .finish_non_exhaustive()
    }
}

impl Line {
    /// Connects and logs in.
    pub(super) async fn open(call: &Call<'_>, stage: &mut Stage) -> Result<Self, TransportError> {
        let stream = tokio::time::timeout(CONNECT, TcpStream::connect(call.address))
            .await
            .map_err(|_| TransportError::TimedOut(Stage::Connect))?
            .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
            .map_err(|error| TransportError::from_io(error, Stage::Connect))?;
        let (leash, stream) = Leash::on(stream);
        let gate = Gate {
            expected: call.expected.clone(),
            shown: Arc::default(),
        };
        let shown = gate.shown.clone();

        *stage = Stage::Handshake;
        let mut session = client::connect_stream(CONFIG.clone(), stream, gate)
            .await
            .map_err(|error| TransportError::from_session(error, Stage::Handshake))?;

        *stage = Stage::Login;
        let key = PrivateKeyWithHashAlg::new(call.login.clone(), None);
        let login = session.authenticate_publickey(LOGIN, key).await;
        if !login.map_err(cut(Stage::Login))?.success() {
            return Err(TransportError::AuthRejected);
        }
        let host_key = shown.get().cloned().ok_or_else(|| garbage(None))?;
        Ok(Self {
            session,
            host_key,
            ready: None,
            answered: Instant::now(),
            leash,
        })
    }

    /// The host key that it was opened with.
    pub(super) fn host_key(&self) -> &HostKey {
        &self.host_key
    }

    /// Whether it leads to the holder of this key, as far as can be known.
    pub(super) fn reaches(&self, host_key: &HostKey) -> bool {
        self.host_key == *host_key && self.is_fresh() && !self.session.is_closed()
    }

    /// Whether it answered a moment ago.
    pub fn is_fresh(&self) -> bool {
        self.answered.elapsed() < FRESH
    }

    /// Starts a command whose standard input is to come, unless that is done already.
    pub(super) async fn make_ready(&mut self, verb: Verb) -> Result<(), TransportError> {
        let since = Instant::now();
        if !self
            .ready
            .as_ref()
            .is_some_and(|ready| ready.keeps(verb, since))
        {
            let channel = self.start(verb).await?;
            self.ready = Some(Ready {
                verb,
                since,
                channel,
            });
        }
        Ok(())
    }

    /// Carries one command and its answer.
    pub(super) async fn carry(
        &mut self,
        verb: Verb,
        stdin: &SecretSlice<u8>,
    ) -> Result<Zeroizing<Vec<u8>>, TransportError> {
        let now = Instant::now();
        let ready = self.ready.take_if(|ready| ready.is_there(verb, now));
        let channel = match ready {
            Some(ready) => ready.channel,
            None => self.start(verb).await?,
        };
        let answer = converse(channel, stdin).await?;
        self.answered = Instant::now();
        Ok(answer)
    }

    async fn start(&self, verb: Verb) -> Result<Channel<Msg>, TransportError> {
        let channel = self.session.channel_open_session().await;
        let channel = channel.map_err(cut(Stage::Login))?;
        let command = channel.exec(true, verb.as_str()).await;
        command.map_err(cut(Stage::Command))?;
        Ok(channel)
    }
}

fn cut(stage: Stage) -> impl Fn(russh::Error) -> TransportError {
    move |error| TransportError::from_session(SessionError::Ssh(error), stage)
}

fn garbage(source: Option<russh::Error>) -> TransportError {
    let stage = Stage::Command;
    TransportError::Garbage { stage, source }
}

/// Writes standard input while reading the answer: a guest may answer before it has read all.
async fn converse(
    channel: Channel<Msg>,
    stdin: &SecretSlice<u8>,
) -> Result<Zeroizing<Vec<u8>>, TransportError> {
    let (mut from, to) = channel.split();
    let write = async {
        // A guest that refuses stops reading; then its answer counts, not the failed write.
        if to.data(stdin.expose_secret()).await.is_ok() {
            let _ = to.eof().await;
        }
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        answer = read_answer(&mut from) => answer,
        never = write => match never {},
    }
}

/// Reads an answer: a line, which is whole before the command has ended, for sudo and PAM take their time for that. What has no end of a line is
/// whole only if the command was seen to exit.
async fn read_answer(from: &mut ChannelReadHalf) -> Result<Zeroizing<Vec<u8>>, TransportError> {
    let mut answer = Zeroizing::new(Vec::with_capacity(4096));
    let (mut received, mut is_line, mut exited) = (0, false, false);
    while let Some(message) = from.wait().await {
        match message {
            ChannelMsg::Data { data } => {
                received += data.len();
                answer.extend_from_slice(&data);
                is_line = data.contains(&b'\n');
            }
            ChannelMsg::ExtendedData { data, .. } => received += data.len(),
            ChannelMsg::ExitStatus { .. } => exited = true,
            ChannelMsg::Failure => return Err(garbage(None)),
            ChannelMsg::Close => break,
            _ => {}
        }
        if received > MAX_ANSWER {
            return Err(TransportError::AnswerTooLarge);
        }
        if is_line {
            return Ok(answer);
        }
    }
    if exited {
        Ok(answer)
    } else {
        Err(TransportError::Cut(Stage::Command))
    }
}

static CONFIG: LazyLock<Arc<client::Config>> = LazyLock::new(|| {
    Arc::new(client::Config {
        preferred: Preferred {
            // Without the two markers there would be no strict key exchange (CVE-2023-48795).
            kex: Cow::Borrowed(&[
                kex::CURVE25519,
                kex::CURVE25519_PRE_RFC_8731,
                kex::EXTENSION_SUPPORT_AS_CLIENT,
                kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
            ]),
            key: Cow::Borrowed(&[Algorithm::Ed25519]),
            compression: Cow::Borrowed(&[compression::NONE]),
            ..Preferred::DEFAULT
        },
        // A peer that vanishes in the middle of a command that may take long is missed after a minute.
        keepalive_interval: Some(Duration::from_secs(15)),
        keepalive_max: 3,
        window_size: 128 * 1024,
        channel_buffer_size: 16,
        ..client::Config::default()
    })
});

/// Decides in the key exchange whether to go on.
struct Gate {
    expected: Option<HostKey>,
    shown: Arc<OnceLock<HostKey>>,
}

#[derive(Debug)]
pub(super) enum SessionError {
    HostKeyChanged(String),
    Ssh(russh::Error),
}

impl From<russh::Error> for SessionError {
    fn from(error: russh::Error) -> Self {
        Self::Ssh(error)
    }
}

impl client::Handler for Gate {
    type Error = SessionError;

    async fn check_server_key(
        &mut self,
        key: &PublicKeyOrCertificate,
    ) -> Result<bool, SessionError> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = key else {
            return Ok(false);
        };
        let Ok(key) = HostKey::from_public(key) else {
            return Ok(false);
        };
        // Also at a later key exchange: a peer that changes its key on the way is not the one
        // that was asked.
        let first = self.shown.get_or_init(|| key.clone());
        if self.expected.as_ref().unwrap_or(first) == &key {
            Ok(true)
        } else {
            Err(SessionError::HostKeyChanged(key.fingerprint().to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_ready_is_used_only_while_the_guest_surely_waits_for_its_input() {
        let since = Instant::now();
        let ready = Ready {
            verb: Verb::Configure,
            since,
            channel: (),
        };
        let after = |seconds| since + Duration::from_secs(seconds);
        assert!(ready.keeps(Verb::Configure, after(29)));
        assert!(!ready.keeps(Verb::Configure, after(30)));
        assert!(ready.is_there(Verb::Configure, after(54)));
        assert!(!ready.is_there(Verb::Configure, after(55)));
        assert!(!ready.keeps(Verb::Hello, after(0)) && !ready.is_there(Verb::Hello, after(0)));
    }
}
