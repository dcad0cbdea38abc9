//! SSH on a fake machine: logins from the table that cloud-init wrote, and no command but the guest's.
//!
//! Bytes pass through a pair of pumps between the socket and the SSH session, so that a machine can
//! freeze, and a connection be cut, without the session's help.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use russh::keys::PrivateKey;
use russh::server::{
    Auth, ChannelOpenHandle, Config, Handle, Handler, Msg, PublicKeyOffer, Session,
    VerifiedPublicKey,
};
use russh::{Channel, ChannelId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex, split};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};

use crate::machines::cloud_init::Login;
use crate::machines::fake::Machine;
use crate::machines::fleet::SshFault;

/// Bytes in flight between socket and session, each way.
const PIPE: usize = 64 * 1024;
const NO_SHELL: &str = "this machine is simulated: it has no shell, only the guest's commands\n";

/// How a machine speaks SSH with this host key.
pub(crate) fn config(key: PrivateKey) -> Config {
    Config {
        keys: vec![key],
        auth_rejection_time: Duration::from_millis(10),
        auth_rejection_time_initial: Some(Duration::ZERO),
        inactivity_timeout: None,
        nodelay: true,
        ..Config::default()
    }
}

/// Serves one connection until either side ends it, the power goes, or it is cut.
pub(crate) async fn connection(machine: Arc<Machine>, mut stream: TcpStream) {
    let mut outages = machine.outages.subscribe();
    let cut = Arc::new(Notify::new());
    // Only fails on a socket that is gone already.
    let _ = stream.set_nodelay(true);
    let broken = tokio::select! {
        () = talk(&machine, &mut stream, Arc::clone(&cut)) => false,
        _ = outages.changed() => true,
        () = cut.notified() => true,
    };
    if broken {
        // Where this fails the client sees an end of stream instead, which is as good.
        let _ = stream.set_zero_linger();
    }
}

async fn talk(machine: &Arc<Machine>, stream: &mut TcpStream, cut: Arc<Notify>) {
    let mut faults = machine.faults.subscribe();
    // It only fails with the machine, and then the connection ends too.
    if faults
        .wait_for(|faults| faults.ssh != SshFault::Hang)
        .await
        .is_err()
    {
        return;
    }
    let (near, far) = duplex(PIPE);
    let (from_session, to_session) = split(far);
    let (from_client, to_client) = stream.split();
    let session = SshSession {
        machine: Arc::clone(machine),
        login: None,
        inputs: HashMap::new(),
        received: 0,
        sent: Arc::new(AtomicU64::new(0)),
        cut,
    };
    let serve = async {
        match russh::server::run_stream(machine.ssh_config(), near, session).await {
            Ok(running) => running.await,
            Err(error) => Err(error),
        }
    };
    tokio::select! {
        ended = async { tokio::join!(serve, pump(machine, from_session, to_client)).0 } => {
            if let Err(error) = ended {
                tracing::debug!(server = machine.server, %error, "SSH");
            }
        }
        () = pump(machine, from_client, to_session) => {}
    }
}

/// Copies until the end of stream; stands still while the machine is frozen.
async fn pump(
    machine: &Machine,
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) {
    let mut faults = machine.faults.subscribe();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else {
            return;
        };
        let thawed = faults.wait_for(|faults| !faults.frozen).await.is_ok();
        if !thawed || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

struct SshSession {
    machine: Arc<Machine>,
    login: Option<Login>,
    /// Where the input of a running command goes; without bound, see the machine host.
    inputs: HashMap<ChannelId, mpsc::UnboundedSender<Vec<u8>>>,
    received: u64,
    sent: Arc<AtomicU64>,
    cut: Arc<Notify>,
}

impl Handler for SshSession {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        let known = self.machine.login(user, offer.public_key).is_some();
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        self.login = self.machine.login(user, key.public_key);
        Ok(if self.login.is_some() {
            Auth::Accept
        } else {
            Auth::reject()
        })
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
        session.channel_success(channel)?;
        let (input, received) = mpsc::unbounded_channel();
        self.inputs.insert(channel, input);
        let run = Exec {
            machine: Arc::clone(&self.machine),
            handle: session.handle(),
            channel,
            sent: Arc::clone(&self.sent),
            cut: Arc::clone(&self.cut),
        };
        let guest = self.login.as_ref().is_some_and(Login::is_guest);
        let command = String::from_utf8_lossy(command).into_owned();
        self.machine.shared.spawn(async move {
            // An error means that the client has gone.
            let _ = if guest {
                run.guest(&command, received).await
            } else {
                run.refuse().await
            };
        });
        Ok(())
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.exec_request(channel, b"", session).await
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let limit = self.machine.faults.borrow().cut_input_after;
        let room = limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.received));
        let kept = data.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        self.received += data.len() as u64;
        if let Some(input) = self.inputs.get(&channel) {
            // The command may have ended without reading all of its input.
            let _ = input.send(data[..kept].to_vec());
        }
        if kept < data.len() {
            self.inputs.clear();
            self.cut.notify_one();
        }
        Ok(())
    }

    async fn channel_eof(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.inputs.remove(&channel);
        Ok(())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.inputs.remove(&channel);
        Ok(())
    }
}

/// The client has gone.
struct Gone;

impl From<()> for Gone {
    fn from((): ()) -> Self {
        Self
    }
}

/// One command being run.
struct Exec {
    machine: Arc<Machine>,
    handle: Handle,
    channel: ChannelId,
    sent: Arc<AtomicU64>,
    cut: Arc<Notify>,
}

impl Exec {
    /// Runs the guest as the forced command does, whatever the client asked for.
    async fn guest(
        &self,
        command: &str,
        input: mpsc::UnboundedReceiver<Vec<u8>>,
    ) -> Result<(), Gone> {
        let Machine { shared, root, .. } = &*self.machine;
        let faults = self.machine.faults.borrow().guest;
        match shared
            .host
            .run(root, &["ssh", command], &faults, input)
            .await
        {
            Ok(ran) => {
                self.send(ran.output).await?;
                self.end(ran.exit).await
            }
            Err(error) => {
                tracing::warn!(server = self.machine.server, %error, "guest");
                self.complain(&format!("{error}\n")).await?;
                self.end(255).await
            }
        }
    }

    async fn refuse(&self) -> Result<(), Gone> {
        self.complain(NO_SHELL).await?;
        self.end(1).await
    }

    async fn send(&self, mut output: Vec<u8>) -> Result<(), Gone> {
        let limit = self.machine.faults.borrow().cut_output_after;
        let before = self.sent.fetch_add(output.len() as u64, Ordering::SeqCst);
        let room = limit.map_or(u64::MAX, |limit| limit.saturating_sub(before));
        let cut = room < output.len() as u64;
        output.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        self.handle
            .data(self.channel, output)
            .await
            .map_err(|_| Gone)?;
        if cut {
            self.cut.notify_one();
            return Err(Gone);
        }
        Ok(())
    }

    async fn complain(&self, text: &str) -> Result<(), Gone> {
        let text = text.as_bytes().to_vec();
        self.handle
            .extended_data(self.channel, 1, text)
            .await
            .map_err(|_| Gone)
    }

    async fn end(&self, exit: u32) -> Result<(), Gone> {
        self.handle.exit_status_request(self.channel, exit).await?;
        self.handle.eof(self.channel).await?;
        self.handle.close(self.channel).await?;
        Ok(())
    }
}
