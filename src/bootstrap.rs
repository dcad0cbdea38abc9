//! The `phone_home` endpoint: a booted server posts its host key under a one-time token.
//!
//! Anybody may call it, so it believes nothing: a call changes something only if its token is
//! genuine, unused and of a server that is expected to boot, and 2xx is answered only once the pin
//! is stored. Calls are small and short, and no answer tells a wrong token from a used one.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::FormRejection;
use axum::extract::{DefaultBodyLimit, Form, FromRequest, Path, Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::post;
use serde::Deserialize;
use tokio::time::timeout;

use crate::guest::host_key::HostKey;
use crate::keys::PhoneHomeToken;

/// The largest body that is read, in bytes.
pub const MAX_BODY: usize = 8 * 1024;
/// The longest instance id that is taken.
const MAX_INSTANCE_ID: usize = 64;

/// Path under the endpoint's base URL at which a token is shown.
pub fn phone_home_path(token: &str) -> String {
    format!("/v1/phone-home/{token}")
}

/// How long a call may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Until its body is there.
    pub body: Duration,
    /// Until the pin is stored.
    pub pin: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: Duration::from_secs(5),
            pin: Duration::from_secs(10),
        }
    }
}

/// What a server said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhoneHome {
    /// The host key to pin.
    pub host_key: HostKey,
    /// At Hetzner the server's id; to be compared with what the token's server has.
    pub instance_id: String,
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinOutcome {
    /// The pin is stored.
    Pinned,
    /// The token is wrong or used, or its server is another one or not expected to boot.
    UnknownToken,
    /// Another replica leads: this one may not write.
    NotLeading,
    /// The pin could not be stored; the server is to try again.
    NotStored,
}

/// Judges tokens and stores pins.
pub trait PhoneHomeSink: Send + Sync + 'static {
    /// Checks token and server, and stores the pin durably before it answers.
    ///
    /// The same call may come twice at once: only one of them is to be `Pinned`.
    fn pin(
        &self,
        token: PhoneHomeToken,
        call: PhoneHome,
    ) -> impl Future<Output = PinOutcome> + Send;
}

/// The routes of the endpoint.
pub fn router<S: PhoneHomeSink>(sink: Arc<S>, limits: Limits) -> Router {
    Router::new()
        .route(&phone_home_path("{token}"), post(receive::<S>))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state((sink, limits))
}

#[derive(Deserialize)]
struct Posted {
    pub_key_ed25519: String,
    instance_id: String,
}

async fn receive<S: PhoneHomeSink>(
    State((sink, limits)): State<(Arc<S>, Limits)>,
    Path(token): Path<String>,
    request: Request,
) -> StatusCode {
    // A URL that cannot hold a token is not worth reading a body for.
    let Some(token) = PhoneHomeToken::parse(&token) else {
        return StatusCode::NOT_FOUND;
    };
    let call = match timeout(limits.body, read(request)).await {
        Ok(Ok(call)) => call,
        Ok(Err(status)) => return status,
        Err(_) => return StatusCode::REQUEST_TIMEOUT,
    };
    let server = token.server().to_owned();
    let outcome = timeout(limits.pin, sink.pin(token, call)).await;
    let outcome = outcome.unwrap_or(PinOutcome::NotStored);
    tracing::info!(server, ?outcome, "phone_home");
    match outcome {
        PinOutcome::Pinned => StatusCode::OK,
        PinOutcome::UnknownToken => StatusCode::NOT_FOUND,
        PinOutcome::NotLeading | PinOutcome::NotStored => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn read(request: Request) -> Result<PhoneHome, StatusCode> {
    let Form(posted) = Form::<Posted>::from_request(request, &())
        .await
        .map_err(refused)?;
    let host_key = posted.pub_key_ed25519.parse();
    let host_key = host_key.map_err(|_| StatusCode::BAD_REQUEST)?;
    let id = posted.instance_id;
    let known = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if id.is_empty() || id.len() > MAX_INSTANCE_ID || !id.chars().all(known) {
        return Err(StatusCode::BAD_REQUEST);
    }
    Ok(PhoneHome {
        host_key,
        instance_id: id,
    })
}

fn refused(rejection: FormRejection) -> StatusCode {
    match rejection.into_response().status() {
        StatusCode::PAYLOAD_TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
        _ => StatusCode::BAD_REQUEST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Keyring, MasterKey};
    use secrecy::ExposeSecret;
    use std::net::SocketAddr;
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIB9dG4kjRhQTtWTVzd2t27+t0DEHBPW7iOD23TUiYLio";
    const FORM: &str = "application/x-www-form-urlencoded";

    struct Pins {
        ring: Keyring,
        stored: Mutex<Vec<(String, PhoneHome)>>,
        otherwise: Option<PinOutcome>,
        stuck: bool,
    }

    impl PhoneHomeSink for Pins {
        async fn pin(&self, token: PhoneHomeToken, call: PhoneHome) -> PinOutcome {
            if self.stuck {
                std::future::pending::<()>().await;
            }
            if let Some(outcome) = self.otherwise {
                return outcome;
            }
            let mut stored = self.stored.lock().unwrap();
            let used = stored.iter().any(|(server, _)| server == token.server());
            if used || !self.ring.accepts(&token) {
                return PinOutcome::UnknownToken;
            }
            stored.push((token.server().to_owned(), call));
            PinOutcome::Pinned
        }
    }

    struct Endpoint {
        address: SocketAddr,
        pins: Arc<Pins>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Drop for Endpoint {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    fn master() -> MasterKey {
        MasterKey::new("fleet-1", &[7; 32]).unwrap()
    }

    fn genuine() -> String {
        let token = master().phone_home_token("a-1").expose();
        token.expose_secret().to_owned()
    }

    fn body(key: &str) -> String {
        let key = key.replace('+', "%2B").replace(' ', "+");
        format!("pub_key_ed25519={key}&instance_id=4711&hostname=a-1&pub_key_rsa=N%2FA")
    }

    impl Endpoint {
        async fn start(otherwise: Option<PinOutcome>, stuck: bool) -> Self {
            let pins = Arc::new(Pins {
                ring: Keyring::new(master(), vec![]).unwrap(),
                stored: Mutex::default(),
                otherwise,
                stuck,
            });
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let limits = Limits {
                body: Duration::from_millis(500),
                pin: Duration::from_millis(500),
            };
            let routes = router(pins.clone(), limits);
            let task = tokio::spawn(async move {
                axum::serve(listener, routes).await.unwrap();
            });
            Self {
                address,
                pins,
                task,
            }
        }

        async fn raw(&self, request: &str) -> u16 {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.unwrap();
            std::str::from_utf8(&answer[9..]).unwrap().parse().unwrap()
        }

        async fn post_as(&self, token: &str, kind: &str, body: &str) -> u16 {
            let path = phone_home_path(token);
            let length = body.len();
            let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}");
            self.raw(&format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}"))
                .await
        }

        async fn post(&self, token: &str, body: &str) -> u16 {
            self.post_as(token, FORM, body).await
        }

        fn stored(&self) -> usize {
            self.pins.stored.lock().unwrap().len()
        }
    }

    #[tokio::test]
    async fn a_genuine_call_is_pinned_once() {
        let endpoint = Endpoint::start(None, false).await;
        let comment = format!("{KEY} root@a-1");
        assert_eq!(endpoint.post(&genuine(), &body(&comment)).await, 200);
        let stored = endpoint.pins.stored.lock().unwrap().clone();
        let expected = PhoneHome {
            host_key: KEY.parse().unwrap(),
            instance_id: "4711".into(),
        };
        assert_eq!(stored, [("a-1".to_owned(), expected)]);
        assert_eq!(endpoint.post(&genuine(), &body(KEY)).await, 404);
        assert_eq!(endpoint.stored(), 1);
    }

    #[tokio::test]
    async fn two_calls_at_once_pin_one_key() {
        let endpoint = Endpoint::start(None, false).await;
        let (token, body) = (genuine(), body(KEY));
        let (one, other) = tokio::join!(endpoint.post(&token, &body), endpoint.post(&token, &body));
        let mut both = [one, other];
        both.sort_unstable();
        assert_eq!(both, [200, 404]);
    }

    #[tokio::test]
    async fn a_wrong_or_malformed_token_finds_nothing() {
        let endpoint = Endpoint::start(None, false).await;
        let other = genuine().replace("a-1", "a-2");
        let cut = &genuine()[..30];
        for token in [other.as_str(), cut, "x", "..%2f..%2f", "%00"] {
            assert_eq!(endpoint.post(token, &body(KEY)).await, 404, "{token}");
        }
        assert_eq!(endpoint.stored(), 0);
    }

    #[tokio::test]
    async fn a_malformed_body_changes_nothing() {
        let endpoint = Endpoint::start(None, false).await;
        let no_id = body(KEY).replace("4711", "");
        let odd_id = body(KEY).replace("4711", "a%0Ab");
        let long_id = body(KEY).replace("4711", &"1".repeat(65));
        let rsa = body("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDI");
        let bad = [
            "",
            "x",
            "%ff=%ff",
            &body("N/A"),
            &rsa,
            &no_id,
            &odd_id,
            &long_id,
        ];
        for body in bad {
            assert_eq!(endpoint.post(&genuine(), body).await, 400, "{body}");
        }
        let json = endpoint.post_as(&genuine(), "application/json", "{}").await;
        assert_eq!(json, 400);
        assert_eq!(endpoint.stored(), 0);
        assert_eq!(endpoint.post(&genuine(), &body(KEY)).await, 200);
    }

    #[tokio::test]
    async fn an_oversized_body_is_refused_whether_its_length_is_told_or_not() {
        let endpoint = Endpoint::start(None, false).await;
        let large = format!("{}&pad={}", body(KEY), "x".repeat(MAX_BODY));
        assert_eq!(endpoint.post(&genuine(), &large).await, 413);
        let head = format!("POST {} HTTP/1.1\r\nHost: x", phone_home_path(&genuine()));
        let length = large.len();
        let chunked = format!(
            "{head}\r\nContent-Type: {FORM}\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n{large}\r\n0\r\n\r\n"
        );
        assert_eq!(endpoint.raw(&chunked).await, 413);
        assert_eq!(endpoint.stored(), 0);
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_ends_in_time() {
        let endpoint = Endpoint::start(None, false).await;
        let head = format!("POST {} HTTP/1.1\r\nHost: x", phone_home_path(&genuine()));
        let slow = format!("{head}\r\nContent-Type: {FORM}\r\nContent-Length: 500\r\n\r\npub");
        assert_eq!(endpoint.raw(&slow).await, 408);
    }

    #[tokio::test]
    async fn no_success_is_told_before_the_pin_is_stored() {
        for outcome in [PinOutcome::NotLeading, PinOutcome::NotStored] {
            let endpoint = Endpoint::start(Some(outcome), false).await;
            assert_eq!(endpoint.post(&genuine(), &body(KEY)).await, 503);
        }
        let stuck = Endpoint::start(None, true).await;
        assert_eq!(stuck.post(&genuine(), &body(KEY)).await, 503);
    }

    #[tokio::test]
    async fn only_a_post_is_served() {
        let endpoint = Endpoint::start(None, false).await;
        let path = phone_home_path(&genuine());
        let get = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(endpoint.raw(&get).await, 405);
    }
}
