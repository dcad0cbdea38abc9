//! One probe: over SSH through the guest, or over HTTP from here.

use std::net::SocketAddr;
use std::time::Duration;

use super::circuit::Reply;
use crate::{
    api::Health,
    guest::{
        GuestError,
        protocol::{self, AnswerError, RefusalCode},
        transport::{Pinned, TransportError},
        untrusted::end_of,
    },
    kube_ext::error_chain,
    redact::KnownSecrets,
};

/// What an act over SSH may take beside the command that it runs.
const SSH: Duration = Duration::from_secs(10);
/// How much of what a command says last goes into a message, in bytes.
const TAIL: usize = 300;
/// What is told in place of that where a Secret could not be told from the rest.
const UNTOLD: &str =
    "what it says is not shown, as the Secret that the agent was given is not known any more";

/// Whom to ask, and how.
#[derive(Clone)]
pub struct Target {
    /// Name of the class.
    pub class: String,
    /// The class's wish.
    pub health: Health,
    /// The server.
    pub server: Pinned,
    /// The epoch of the configuration that is asked about.
    pub epoch: i64,
    /// What its agent may tell of its Secret.
    pub known: KnownSecrets,
    /// The tag of the secrets that the agent has.
    pub given: Option<String>,
}

/// A client that follows no redirect and keeps no connection.
///
/// # Errors
/// When the TLS configuration cannot be made.
pub fn http_client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(0)
        .no_proxy()
        .build()
}

/// Asks once; none: the answer says nothing, as the server was configured anew meanwhile.
pub async fn ask(target: &Target, http: &reqwest::Client) -> Option<Reply> {
    let Health {
        http: over_http,
        exec,
        timeout,
        ..
    } = &target.health;
    let timeout = timeout.get();
    match (over_http, exec) {
        (Some(probe), _) => Some(over(target.server.address, probe, timeout, http).await),
        (_, Some(exec)) => run(target, &exec.command, timeout).await,
        (None, None) => unit(target, timeout).await,
    }
}

async fn over(
    server: SocketAddr,
    probe: &crate::api::HttpProbe,
    timeout: Duration,
    http: &reqwest::Client,
) -> Reply {
    let url = format!(
        "http://{}{}",
        SocketAddr::new(server.ip(), probe.port),
        probe.path
    );
    let what = format!("GET :{}{}", probe.port, probe.path);
    match http.get(url).timeout(timeout).send().await {
        Ok(answer) => {
            let status = answer.status();
            let good = probe
                .status
                .map_or(status.is_success(), |wanted| wanted == status.as_u16());
            if good {
                Reply::Good
            } else {
                Reply::Bad(format!("{what} answers {}", status.as_u16()))
            }
        }
        Err(error) if error.is_connect() && !refused(&error) => Reply::Silent(format!(
            "{what}: cannot connect; does firewall.healthFrom let the operator in?"
        )),
        Err(error) if error.is_timeout() => Reply::Bad(format!("{what} does not answer in time")),
        Err(error) => Reply::Bad(format!("{what}: {}", error_chain(&error.without_url()))),
    }
}

/// Whether the machine itself said that nobody listens.
fn refused(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.kind() == std::io::ErrorKind::ConnectionRefused;
        }
        cause = error.source();
    }
    false
}

async fn run(target: &Target, command: &str, timeout: Duration) -> Option<Reply> {
    let probe = protocol::Probe {
        epoch: target.epoch.unsigned_abs(),
        command: command.to_owned(),
        timeout: timeout.as_secs(),
    };
    match target.server.run(&probe, timeout + SSH).await {
        Ok(answered) => {
            let probed = answered.answer;
            let said = || target.known.clean(&probed.output.line(), &target.given);
            let said = match probed.exit {
                Some(0) => String::new(),
                _ => said().map_or_else(|| UNTOLD.to_owned(), |said| end_of(&said, TAIL).into()),
            };
            Some(match probed.exit {
                _ if probed.timed_out => {
                    Reply::Bad(format!("the probe command did not end in time: {said}"))
                }
                Some(0) => Reply::Good,
                Some(code) => Reply::Bad(format!("the probe command ended with {code}: {said}")),
                None => Reply::Bad("the probe command was killed".into()),
            })
        }
        Err(error) => silent(&error),
    }
}

async fn unit(target: &Target, timeout: Duration) -> Option<Reply> {
    let status = protocol::AskStatus {
        epoch: target.epoch.unsigned_abs(),
    };
    match target.server.run(&status, timeout).await {
        Ok(answered) => Some(match answered.answer.unit {
            Some(unit) if unit.is_active() => Reply::Good,
            Some(unit) => Reply::Bad(format!(
                "the unit is {} ({}, {})",
                unit.active, unit.sub, unit.result
            )),
            None => Reply::Bad("there is no unit".into()),
        }),
        Err(error) => silent(&error),
    }
}

fn silent(error: &GuestError) -> Option<Reply> {
    match error {
        GuestError::Answer(AnswerError::Refused(refusal))
            if refusal.code == RefusalCode::StaleEpoch =>
        {
            None
        }
        GuestError::Transport(TransportError::HostKeyChanged { .. }) => {
            Some(Reply::Stranger(error_chain(error)))
        }
        error => Some(Reply::Silent(error_chain(error))),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::api::HttpProbe;

    /// Longer than any test.
    const PATIENT: Duration = Duration::from_mins(10);

    /// Answers one request with this, and says no more as long as the connection lasts.
    async fn answering(answer: String) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 1024];
            while stream.read(&mut asked).await.is_ok_and(|read| read > 0) {
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        address
    }

    fn headers(status: &str, more: &str) -> String {
        format!("HTTP/1.1 {status}\r\n{more}\r\n")
    }

    async fn asked(address: SocketAddr, status: Option<u16>, timeout: Duration) -> Reply {
        let probe = HttpProbe {
            port: address.port(),
            path: "/health".into(),
            status,
        };
        let _chosen_before = rustls::crypto::ring::default_provider().install_default();
        let http = http_client().unwrap();
        let reply = over(address, &probe, timeout, &http);
        tokio::time::timeout(PATIENT / 20, reply).await.unwrap()
    }

    fn bad(address: SocketAddr, words: &str) -> Reply {
        Reply::Bad(format!("GET :{}/health {words}", address.port()))
    }

    #[tokio::test]
    async fn an_agent_that_takes_the_request_and_says_nothing_is_bad_in_time() {
        for said in [String::new(), "HTTP/1.1 200 OK\r\nserver: slow\r\n".into()] {
            let address = answering(said).await;
            let reply = asked(address, None, Duration::from_millis(100)).await;
            assert_eq!(reply, bad(address, "does not answer in time"));
        }
    }

    #[tokio::test]
    async fn a_redirect_is_bad_and_where_it_leads_is_not_asked() {
        let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = format!("location: http://{}/\r\n", target.local_addr().unwrap());
        let address = answering(headers("302 Found", &to)).await;
        assert_eq!(
            asked(address, None, PATIENT).await,
            bad(address, "answers 302")
        );
        let target = target.into_std().unwrap();
        let kind = target.accept().unwrap_err().kind();
        assert_eq!(kind, std::io::ErrorKind::WouldBlock);
    }

    #[tokio::test]
    async fn a_body_without_end_is_not_waited_for() {
        let endless = headers("200 OK", "content-length: 1000000000000\r\n");
        let address = answering(endless + "and so on").await;
        assert_eq!(asked(address, None, PATIENT).await, Reply::Good);
    }

    #[tokio::test]
    async fn another_status_than_the_wanted_one_is_bad() {
        for (answer, wanted, expected) in [
            ("200 OK", Some(204), Some("answers 200")),
            ("204 No Content", Some(204), None),
            ("302 Found", Some(302), None),
            ("204 No Content", None, None),
            ("500 Internal Server Error", None, Some("answers 500")),
        ] {
            let address = answering(headers(answer, "connection: close\r\n")).await;
            let expected = expected.map_or(Reply::Good, |words| bad(address, words));
            assert_eq!(asked(address, wanted, PATIENT).await, expected, "{answer}");
        }
    }
}
