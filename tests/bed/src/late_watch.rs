//! A way to the API server on which the events of a watch can be held back: whoever goes this way works on with an old view, while his writes
//! arrive as always. It can be cut as well: then nothing gets through either way, and nobody says so.

use std::net::SocketAddr;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::failure::Outcome;

/// More than any object has.
const MAX_BODY: usize = 8 << 20;

/// The way; it ends when this goes.
pub struct LateWatch {
    address: SocketAddr,
    held: watch::Sender<bool>,
    cut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Way {
    client: Client,
    resource: &'static str,
    held: watch::Receiver<bool>,
    cut: watch::Receiver<bool>,
}

impl LateWatch {
    /// Opens a way to the API server of `client`, who brings no identity of his own; the watches of `resource` can be held back on it.
    pub(crate) async fn open(client: Client, resource: &'static str) -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (held, cut) = (watch::Sender::new(false), watch::Sender::new(false));
        let way = Way {
            client,
            resource,
            held: held.subscribe(),
            cut: cut.subscribe(),
        };
        let app = Router::new().fallback(pass).with_state(way);
        let task = tokio::spawn(async move {
            // It serves until it is aborted.
            let _never = axum::serve(listener, app).await;
        });
        Ok(Self {
            address,
            held,
            cut,
            task,
        })
    }

    /// URL of the API server this way.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Holds all further events back, in their order.
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    /// Cuts the way, or mends it; what was under way arrives then.
    pub fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }

    /// Lets through what was held back, and all that follows.
    pub fn let_go(&self) {
        self.held.send_replace(false);
    }
}

impl Drop for LateWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(State(way): State<Way>, request: Request) -> Response {
    let query = request.uri().query().unwrap_or_default();
    let may_be_held = query.contains("watch=true") && request.uri().path().ends_with(way.resource);
    is_over(&way.cut).await;
    let answer = carry(&way.client, request).await;
    is_over(&way.cut).await;
    match answer {
        Ok(answer) => answer.map(|body| {
            let body = late(body, &way.cut);
            if may_be_held {
                late(body, &way.held)
            } else {
                body
            }
        }),
        Err(failure) => (StatusCode::BAD_GATEWAY, failure.to_string()).into_response(),
    }
}

/// Waits until nobody keeps anything back; where the sender is gone, nobody does.
async fn is_over(kept_back: &watch::Receiver<bool>) {
    let _ = kept_back.clone().wait_for(|kept_back| !kept_back).await;
}

/// Sends a request on as it is, with the identity that it carries.
async fn carry(client: &Client, request: Request) -> Outcome<Response> {
    let (mut head, body) = request.into_parts();
    for own in [header::HOST, header::CONTENT_LENGTH, header::CONNECTION] {
        head.headers.remove(own);
    }
    let body = to_bytes(body, MAX_BODY).await?.to_vec();
    let answer = client
        .send(axum::http::Request::from_parts(head, body.into()))
        .await?;
    Ok(answer.map(Body::new))
}

fn late(events: Body, held: &watch::Receiver<bool>) -> Body {
    let held = held.clone();
    Body::from_stream(events.into_data_stream().then(move |event| {
        let held = held.clone();
        async move {
            is_over(&held).await;
            event
        }
    }))
}
