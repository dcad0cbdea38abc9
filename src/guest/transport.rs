//! SSH to a guest: one command, one round trip, all under one deadline.
//!
//! What is sent to a [`Pinned`] server reaches the holder of the pinned host key or nobody: the
//! check happens in the key exchange, before the login and before the first byte of a command. A
//! [`Line`] that just carried one command may carry the next.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::PrivateKey;
use secrecy::SecretSlice;
use secrecy::zeroize::Zeroizing;

use super::GuestError;
use super::host_key::HostKey;
use super::line::{Line, SessionError};
use super::protocol::{self, AnswerError, Answered, Command, MAX_ANSWER, Verb};

/// The login that runs the guest and nothing else.
pub const LOGIN: &str = "agentfleet";

/// How far an act had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// No TCP connection yet.
    Connect,
    /// Key exchange.
    Handshake,
    /// Authentication.
    Login,
    /// The command was, or was about to be, given: it may have taken effect.
    Command,
}

/// Why an act has no answer.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Nothing listens there.
    #[error("connection refused")]
    Refused,
    /// The network says no.
    #[error("cannot reach the server")]
    Unreachable(#[source] io::Error),
    /// The deadline passed.
    #[error("no answer in time, at {0:?}")]
    TimedOut(Stage),
    /// The server has another host key than the pinned one. Nothing was sent to it.
    #[error("the host key is not the pinned one but {seen}")]
    HostKeyChanged {
        /// Fingerprint of the key it showed.
        seen: String,
    },
    /// The login key was not accepted.
    #[error("the login was rejected")]
    AuthRejected,
    /// The connection ended before the answer did.
    #[error("the connection was cut, at {0:?}")]
    Cut(Stage),
    /// The answer was longer than [`MAX_ANSWER`].
    #[error("the answer is longer than {MAX_ANSWER} bytes")]
    AnswerTooLarge,
    /// What answered does not speak SSH as it should.
    #[error("the server broke the protocol, at {stage:?}")]
    Garbage {
        /// How far the act had come.
        stage: Stage,
        /// What was wrong.
        #[source]
        source: Option<russh::Error>,
    },
}

impl TransportError {
    pub(super) fn from_io(error: io::Error, stage: Stage) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::TimedOut(stage),
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => Self::Cut(stage),
            _ => Self::Unreachable(error),
        }
    }

    pub(super) fn from_session(error: SessionError, stage: Stage) -> Self {
        match error {
            SessionError::HostKeyChanged(seen) => Self::HostKeyChanged { seen },
            SessionError::Ssh(russh::Error::IO(error)) => Self::from_io(error, stage),
            SessionError::Ssh(
                russh::Error::Disconnect
                | russh::Error::HUP
                | russh::Error::SendError
                | russh::Error::RecvError,
            ) => Self::Cut(stage),
            SessionError::Ssh(source) => Self::Garbage {
                stage,
                source: Some(source),
            },
        }
    }
}

/// A server whose host key is pinned: the only kind that is ever told a secret.
#[derive(Clone)]
pub struct Pinned {
    /// Where its SSH answers.
    pub address: SocketAddr,
    /// The login key of this server.
    pub login: Arc<PrivateKey>,
    /// The pinned host key.
    pub host_key: HostKey,
}

impl Pinned {
    /// Gives the guest one command, over a connection of its own, and reads its answer.
    ///
    /// # Errors
    /// When the way there failed, the guest refused or its answer is malformed. Unless the guest
    /// refused, or the error names a [`Stage`] before `Command`, the command may have taken effect.
    pub async fn run<C: Command>(
        &self,
        command: &C,
        deadline: Duration,
    ) -> Result<Answered<C::Answer>, GuestError> {
        self.run_on(&mut None, None, command, deadline).await
    }

    /// The same for a command that may take long: whether there is a way to the guest is known within `reach`.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn run_long<C: Command>(
        &self,
        command: &C,
        reach: Duration,
        deadline: Duration,
    ) -> Result<Answered<C::Answer>, GuestError> {
        let (call, mut stage) = (self.call(command)?, Stage::Connect);
        let opened = tokio::time::timeout(reach, Line::open(&call, &mut stage)).await;
        let line = opened.unwrap_or(Err(TransportError::TimedOut(stage)))?;
        self.run_on(&mut Some(line), None, command, deadline).await
    }

    fn call<C: Command>(&self, command: &C) -> Result<Call<'_>, GuestError> {
        Ok(Call {
            address: self.address,
            login: &self.login,
            expected: Some(self.host_key.clone()),
            verb: C::VERB,
            stdin: command.stdin().map_err(GuestError::Request)?,
        })
    }

    /// The same over a line that is at hand, else over a new one; the line that did well stays, with a command made ready on it if so wanted.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn run_on<C: Command>(
        &self,
        line: &mut Option<Line>,
        next: Option<Verb>,
        command: &C,
        deadline: Duration,
    ) -> Result<Answered<C::Answer>, GuestError> {
        let call = self.call(command)?;
        let at_hand = line.take().filter(|line| line.reaches(&self.host_key));
        let (used, answer) = exec(call, at_hand, next, deadline).await?;
        let answered = protocol::parse(&answer);
        // Whoever babbles may go on with it for as long as there is a line.
        *line = Some(used).filter(|_| !matches!(answered, Err(AnswerError::Malformed { .. })));
        Ok(answered?)
    }
}

/// One act, before it is carried out.
pub(super) struct Call<'a> {
    pub(super) address: SocketAddr,
    pub(super) login: &'a Arc<PrivateKey>,
    /// The only host key to talk to; `None` takes any and tells which.
    pub(super) expected: Option<HostKey>,
    pub(super) verb: Verb,
    pub(super) stdin: SecretSlice<u8>,
}

/// Carries out one act; the line that it went over knows which host key answered.
pub(super) async fn exec(
    call: Call<'_>,
    at_hand: Option<Line>,
    next: Option<Verb>,
    deadline: Duration,
) -> Result<(Line, Zeroizing<Vec<u8>>), TransportError> {
    let mut stage = Stage::Connect;
    match tokio::time::timeout(deadline, round_trip(call, at_hand, next, &mut stage)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(TransportError::TimedOut(stage)),
    }
}

async fn round_trip(
    call: Call<'_>,
    at_hand: Option<Line>,
    next: Option<Verb>,
    stage: &mut Stage,
) -> Result<(Line, Zeroizing<Vec<u8>>), TransportError> {
    let mut line = match at_hand {
        Some(line) => line,
        None => Line::open(&call, stage).await?,
    };
    if let Some(verb) = next {
        line.make_ready(verb).await?;
    }
    *stage = Stage::Command;
    let answer = line.carry(call.verb, &call.stdin).await?;
    Ok((line, answer))
}

#[cfg(test)]
mod tests {
    use super::super::bundle::tests::configure;
    use super::super::protocol::{AskLogs, AskStatus, RefusalCode};
    use super::super::stand_in::*;
    use super::*;
    use russh::keys::Algorithm;
    use secrecy::ExposeSecret as _;
    use serde_json::json;
    use std::sync::Mutex;
    use tokio::sync::Notify;

    fn pinned(to: &StandIn) -> Pinned {
        Pinned {
            address: to.address,
            login: keys().login,
            host_key: to.host_key.clone(),
        }
    }

    fn logs() -> AskLogs {
        AskLogs { epoch: 1, lines: 2 }
    }

    fn said(fields: &serde_json::Value) -> Vec<u8> {
        let mut answer = json!({"protocol": 1, "guest": "0.1.0", "ok": true});
        for (key, value) in fields.as_object().unwrap() {
            answer[key] = value.clone();
        }
        answer.to_string().into_bytes()
    }

    async fn fails(to: &StandIn, deadline: Duration) -> TransportError {
        match pinned(to).run(&logs(), deadline).await.unwrap_err() {
            GuestError::Transport(error) => error,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn one_command_is_one_round_trip() {
        let guest = StandIn::new(|_| Reply::Answer(said(&json!({"journal": ["a", "b"]})))).await;
        let answer = pinned(&guest).run(&logs(), DEADLINE).await.unwrap().answer;
        assert_eq!(answer.journal[1], "b");
        let request = br#"{"epoch":1,"lines":2}"#.to_vec();
        assert_eq!(guest.acts(), [("logs".to_owned(), request)]);
    }

    #[tokio::test]
    async fn a_line_carries_the_next_command_which_was_ready_before_its_input_was() {
        let busy = json!({"ok": false, "error": {"code": "Busy", "message": "wait", "tail": []}});
        let guest = StandIn::new(move |(verb, _)| {
            let journal = json!({"journal": []});
            Reply::Answer(said(if verb == "status" { &busy } else { &journal }))
        })
        .await;
        let (target, logs, status) = (pinned(&guest), logs(), AskStatus { epoch: 7 });
        let mut line = None;
        let next = Some(Verb::Status);
        let first = target.run_on(&mut line, next, &logs, DEADLINE).await;
        first.unwrap();
        assert_eq!(guest.begun(), ["login", "status", "logs"]);
        assert_eq!(guest.acts().len(), 1);
        let _ = target.run_on(&mut line, None, &status, DEADLINE).await;
        let third = target.run_on(&mut line, None, &logs, DEADLINE).await;
        third.unwrap();
        assert_eq!(guest.begun(), ["login", "status", "logs", "logs"]);
        let sent = br#"{"epoch":7}"#.to_vec();
        assert_eq!(guest.acts()[1], ("status".into(), sent));
    }

    #[tokio::test]
    async fn a_line_to_one_server_is_none_to_another() {
        let answer = || said(&json!({"journal": []}));
        let guest = StandIn::new(move |_| Reply::Answer(answer())).await;
        let other = StandIn::new(move |_| Reply::Answer(answer())).await;
        let (logs, mut line) = (logs(), None);
        for target in [pinned(&guest), pinned(&other)] {
            let answered = target.run_on(&mut line, None, &logs, DEADLINE).await;
            answered.unwrap();
        }
        assert_eq!(other.begun(), ["login", "logs"]);
    }

    #[tokio::test]
    async fn a_refusal_of_the_guest_arrives_as_one() {
        let answer = json!({
            "protocol": 1, "guest": "1", "ok": false,
            "error": {"code": "Busy", "message": "wait", "tail": []},
        });
        let guest = StandIn::new(move |_| Reply::Answer(answer.to_string().into_bytes())).await;
        let error = pinned(&guest).run(&logs(), DEADLINE).await.unwrap_err();
        let GuestError::Answer(AnswerError::Refused(refusal)) = error else {
            panic!("{error:?}");
        };
        assert_eq!(refusal.code, RefusalCode::Busy);
    }

    #[tokio::test]
    async fn another_host_key_than_the_pinned_one_is_told_nothing() {
        let guest = StandIn::new(|_| Reply::Answer(said(&json!({"journal": []})))).await;
        let impostor = StandIn::new(|_| Reply::Answer(said(&json!({"journal": []})))).await;
        let mut target = pinned(&guest);
        target.address = impostor.address;
        let error = target.run(&configure(), DEADLINE).await.unwrap_err();
        let GuestError::Transport(TransportError::HostKeyChanged { seen }) = error else {
            panic!("{error:?}");
        };
        assert_eq!(seen, impostor.host_key.fingerprint());
        assert!(impostor.acts().is_empty());
    }

    #[tokio::test]
    async fn a_server_without_an_ed25519_host_key_is_not_spoken_to() {
        let curve = russh::keys::EcdsaCurve::NistP256;
        let ecdsa = PrivateKey::random(&mut rand::rng(), Algorithm::Ecdsa { curve }).unwrap();
        let options = Options {
            host_keys: vec![ecdsa],
            ..Options::new()
        };
        let guest = options.start(|_| Reply::Hang).await;
        let error = fails(&guest, DEADLINE).await;
        assert!(matches!(error, TransportError::Garbage { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_login_that_is_not_accepted_is_told_apart() {
        let accepts = Some(host_key().public_key().clone());
        let guest = Options {
            accepts,
            ..Options::new()
        }
        .start(|_| Reply::Hang)
        .await;
        assert!(matches!(
            fails(&guest, DEADLINE).await,
            TransportError::AuthRejected
        ));
    }

    #[tokio::test]
    async fn a_dead_address_refuses() {
        let guest = StandIn::new(|_| Reply::Hang).await;
        let mut target = pinned(&guest);
        target.address = dead_address().await;
        let error = target.run(&logs(), DEADLINE).await.unwrap_err();
        assert!(matches!(
            error,
            GuestError::Transport(TransportError::Refused)
        ));
    }

    #[tokio::test]
    async fn silence_ends_at_the_deadline_and_says_where() {
        let silent = StandIn::raw(async |stream| {
            let _held = stream;
            std::future::pending::<()>().await;
        })
        .await;
        let hanging = StandIn::new(|_| Reply::Hang).await;
        for (to, stage) in [(silent, Stage::Handshake), (hanging, Stage::Command)] {
            let error = fails(&to, Duration::from_millis(1500)).await;
            assert!(
                matches!(error, TransportError::TimedOut(at) if at == stage),
                "{error:?}"
            );
        }
    }

    #[tokio::test]
    async fn what_may_take_long_is_waited_for_only_where_there_is_a_way() {
        let silent = StandIn::raw(async |stream| {
            let _held = stream;
            std::future::pending::<()>().await;
        })
        .await;
        let hanging = StandIn::new(|_| Reply::Hang).await;
        let (short, long) = (Duration::from_millis(1500), Duration::from_hours(1));
        for (to, reach, deadline, stage) in [
            (silent, short, long, Stage::Handshake),
            (hanging, long, short, Stage::Command),
        ] {
            let error = pinned(&to).run_long(&logs(), reach, deadline).await;
            assert!(
                matches!(error, Err(GuestError::Transport(TransportError::TimedOut(at))) if at == stage),
                "{error:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_connection_that_was_given_up_is_closed() {
        // Silent after its banner: russh's own task would wait for the handshake for ever.
        let closed = Arc::new(Notify::new());
        let seen = closed.clone();
        let silent = StandIn::raw(move |mut stream| {
            let seen = seen.clone();
            async move {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                stream.write_all(b"SSH-2.0-silent\r\n").await.unwrap();
                while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
                seen.notify_one();
            }
        })
        .await;
        fails(&silent, Duration::from_millis(300)).await;
        tokio::time::timeout(DEADLINE, closed.notified())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn what_is_not_ssh_is_garbage_or_ends_at_the_deadline() {
        let web = StandIn::raw(|stream| babble(stream, b"HTTP/1.1 400 Bad Request\r\n\r\n")).await;
        let noise = StandIn::raw(|stream| babble(stream, &[0xff; 4096])).await;
        let broken = StandIn::raw(|stream| babble(stream, b"SSH-2.0-x\r\n\xff\xff\xff\xff")).await;
        for to in [web, noise, broken] {
            let error = fails(&to, Duration::from_secs(2)).await;
            let expected = matches!(
                error,
                TransportError::Garbage { .. }
                    | TransportError::TimedOut(Stage::Handshake)
                    | TransportError::Cut(Stage::Handshake)
            );
            assert!(expected, "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_is_cut_is_told_apart_from_an_answer() {
        let closing = StandIn::raw(async |stream| drop(stream)).await;
        let error = fails(&closing, DEADLINE).await;
        assert!(
            matches!(error, TransportError::Cut(Stage::Handshake)),
            "{error:?}"
        );

        let cut = StandIn::new(|_| Reply::CutAfter("{\"protocol\":1")).await;
        let no_exit = StandIn::new(|_| Reply::NoExit(said(&json!({"journal": []})))).await;
        for to in [cut, no_exit] {
            let error = fails(&to, DEADLINE).await;
            assert!(
                matches!(error, TransportError::Cut(Stage::Command)),
                "{error:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_line_is_an_answer_before_its_command_has_ended() {
        let mut line = said(&json!({"journal": ["a"]}));
        line.push(b'\n');
        let lingers = StandIn::new(move |_| Reply::Lingers(line.clone())).await;
        let answer = pinned(&lingers)
            .run(&logs(), DEADLINE)
            .await
            .unwrap()
            .answer;
        assert_eq!(answer.journal[0], "a");
    }

    #[tokio::test]
    async fn data_without_end_is_cut_off_at_the_bound() {
        let endless = StandIn::new(|_| Reply::Endless).await;
        let errors = StandIn::new(|_| Reply::EndlessErrors).await;
        let large = StandIn::new(|_| Reply::Answer(vec![b' '; MAX_ANSWER + 1])).await;
        for to in [endless, errors, large] {
            let error = fails(&to, DEADLINE).await;
            assert!(matches!(error, TransportError::AnswerTooLarge), "{error:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_of_the_largest_size_is_read() {
        let mut answer = said(&json!({"journal": ["x"]}));
        answer.resize(MAX_ANSWER, b' ');
        let guest = StandIn::new(move |_| Reply::Answer(answer.clone())).await;
        let answer = pinned(&guest).run(&logs(), DEADLINE).await.unwrap().answer;
        assert_eq!(answer.journal[0], "x");
    }

    #[tokio::test]
    async fn an_answer_counts_though_the_guest_never_read_its_input() {
        let guest = Options {
            hasty: true,
            ..Options::new()
        }
        .start(|_| Reply::Answer(said(&json!({"journal": []}))))
        .await;
        let mut large = configure();
        large.secret_files[0].content = vec![1; 3_000_000].into();
        let call = Call {
            address: guest.address,
            login: &keys().login,
            expected: Some(guest.host_key.clone()),
            verb: Verb::Configure,
            stdin: large.stdin().unwrap(),
        };
        let (_, answer) = exec(call, None, None, DEADLINE).await.unwrap();
        assert_eq!(*answer, said(&json!({"journal": []})));
    }

    #[tokio::test]
    async fn megabytes_of_input_arrive_whole() {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let seen = sizes.clone();
        let guest = StandIn::new(move |(_, stdin)| {
            seen.lock().unwrap().push(stdin.len());
            Reply::Answer(vec![])
        })
        .await;
        let mut large = configure();
        large.secret_files[0].content = vec![1; 5_000_000].into();
        let error = pinned(&guest).run(&large, DEADLINE).await.unwrap_err();
        assert!(matches!(
            error,
            GuestError::Answer(AnswerError::Malformed { .. })
        ));
        let sent = large.stdin().unwrap().expose_secret().len();
        assert_eq!(*sizes.lock().unwrap(), [sent]);
    }

    #[tokio::test]
    async fn a_command_that_is_not_accepted_or_answers_nonsense_is_no_answer() {
        let refuses = Options {
            refuses: true,
            ..Options::new()
        };
        let refusing = refuses.start(|_| Reply::Hang).await;
        let error = fails(&refusing, DEADLINE).await;
        assert!(matches!(
            error,
            TransportError::Garbage {
                stage: Stage::Command,
                ..
            }
        ));

        let babbling = StandIn::new(|_| Reply::Lingers(b"\x1b[2J{\xff\n\n".to_vec())).await;
        let (status, mut line) = (AskStatus { epoch: 1 }, None);
        let babbles = pinned(&babbling);
        let answer = babbles.run_on(&mut line, None, &status, DEADLINE).await;
        assert!(line.is_none(), "it may go on");
        let error = answer.unwrap_err();
        assert!(matches!(
            error,
            GuestError::Answer(AnswerError::Malformed { .. })
        ));
    }
}
