//! A stream that ends when its owner lets go of it.
//!
//! russh runs each connection in a task of its own, which outlives the future that opened it: a
//! peer that stays silent in the handshake would keep that task, and its socket, for ever. Such
//! a task reads nothing but end of file once the [`Leash`] is dropped.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// Holds a stream open; dropping it ends the stream.
pub(super) struct Leash(
    #[expect(dead_code, reason = "its drop is the signal")] oneshot::Sender<Infallible>,
);

/// A stream on a leash.
pub(super) struct Leashed {
    stream: TcpStream,
    held: Option<oneshot::Receiver<Infallible>>,
}

impl Leash {
    /// Puts a stream on a leash.
    pub(super) fn on(stream: TcpStream) -> (Self, Leashed) {
        let (leash, held) = oneshot::channel();
        let held = Some(held);
        (Self(leash), Leashed { stream, held })
    }
}

impl Leashed {
    /// Says whether the leash is gone; else the task wakes up when that happens.
    fn is_loose(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(held) = &mut self.held
            && Pin::new(held).poll(cx).is_ready()
        {
            self.held = None;
        }
        self.held.is_none()
    }
}

impl AsyncRead for Leashed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_loose(cx) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Leashed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_loose(cx) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
