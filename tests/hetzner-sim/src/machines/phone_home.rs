//! The form that cloud-init posts when a boot is through.

use std::io;
use std::time::Duration;

use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::machines::cloud_init::PhoneHome;

/// Between two tries, as in cloud-init.
const PAUSE: Duration = Duration::from_secs(3);

/// Why a call did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PhoneHomeError {
    #[error("'{0}' is not a plain http URL")]
    BadUrl(String),
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("the request broke")]
    Http(#[from] hyper::Error),
    #[error("cannot build the request")]
    Request(#[from] hyper::http::Error),
    #[error("answered {0}")]
    Refused(StatusCode),
}

/// What is known of the server that calls.
pub(crate) struct Caller<'a> {
    pub(crate) pub_key_ed25519: &'a str,
    pub(crate) instance_id: &'a str,
    pub(crate) hostname: &'a str,
}

/// Posts until it is answered well or the tries are used up.
pub(crate) async fn call(phone: &PhoneHome, caller: &Caller<'_>) -> Result<(), PhoneHomeError> {
    let mut tried = 0;
    loop {
        tried += 1;
        match post(phone, caller).await {
            Err(error) if tried < phone.tries => {
                tracing::debug!(%error, tried, "phone_home");
                tokio::time::sleep(PAUSE).await;
            }
            last => return last,
        }
    }
}

fn form(phone: &PhoneHome, caller: &Caller<'_>) -> String {
    let fields = [
        ("pub_key_ed25519", caller.pub_key_ed25519),
        ("instance_id", caller.instance_id),
        ("hostname", caller.hostname),
    ];
    let posted: Vec<_> = fields
        .into_iter()
        .filter(|(name, _)| phone.posts(name))
        .collect();
    serde_urlencoded::to_string(posted).unwrap_or_default()
}

async fn post(phone: &PhoneHome, caller: &Caller<'_>) -> Result<(), PhoneHomeError> {
    let url = phone.url.replace("$INSTANCE_ID", caller.instance_id);
    let bad = || PhoneHomeError::BadUrl(url.clone());
    let uri: Uri = url.parse().map_err(|_| bad())?;
    let authority = uri
        .authority()
        .filter(|_| uri.scheme_str() == Some("http"))
        .ok_or_else(bad)?;
    let target = (authority.host(), authority.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(target)
        .await
        .map_err(PhoneHomeError::Connect)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::post(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(HOST, authority.as_str())
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(form(phone, caller))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        Ok(response.status())
    };
    let status = tokio::select! {
        status = answer => status,
        broken = connection => broken.map(|()| StatusCode::BAD_GATEWAY),
    }?;
    if status.is_success() {
        Ok(())
    } else {
        Err(PhoneHomeError::Refused(status))
    }
}
