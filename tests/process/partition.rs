//! A link to the API server that a test can cut.

use std::net::SocketAddr;

use kube::Config;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the link does with connections.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Link {
    /// Passes everything on.
    Open,
    /// Keeps connections and accepts new ones, but nothing gets through.
    Silent,
    /// Ends connections, old and new.
    Closed,
}

/// Makes a link to the API server of `config` and a configuration that uses it.
pub async fn link(config: &Config) -> (Config, watch::Sender<Link>) {
    let server: SocketAddr = config
        .cluster_url
        .authority()
        .unwrap()
        .as_str()
        .parse()
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut linked = config.clone();
    linked.cluster_url = format!("https://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let (sender, state) = watch::channel(Link::Open);
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(pass(connection, server, state.clone()));
        }
    });
    (linked, sender)
}

async fn pass(mut connection: TcpStream, server: SocketAddr, mut state: watch::Receiver<Link>) {
    let mut upstream = TcpStream::connect(server).await.unwrap();
    while *state.borrow_and_update() == Link::Open {
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut connection, &mut upstream) => return,
            changed = state.changed() => if changed.is_err() { return },
        }
    }
    if *state.borrow() == Link::Silent {
        std::future::pending::<()>().await;
    }
}
