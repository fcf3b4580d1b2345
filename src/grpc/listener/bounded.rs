//! A connection with an end: after its lifetime, or when the drain period is over, its I/O fails.
//!
//! tonic owns the tasks of its connections and offers no handle to them; failing I/O is the way to end
//! one from outside. A small task per connection waits for the end, so that reads and writes pay for one
//! atomic load and no timer.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::transport::server::Connected;

pub(super) struct Bounded<IO> {
    io: IO,
    end: Arc<End>,
    _watch: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct End {
    reached: AtomicBool,
    reader: AtomicWaker,
}

impl<IO> Bounded<IO> {
    pub(super) fn new(io: IO, lifetime: Duration, cut: CancellationToken) -> Self {
        let end = Arc::new(End::default());
        let watched = Arc::clone(&end);
        let watch = tokio::spawn(async move {
            tokio::select! {
                () = sleep(lifetime) => {}
                () = cut.cancelled() => {}
            }
            watched.reached.store(true, Ordering::Release);
            watched.reader.wake();
        });
        Self {
            io,
            end,
            _watch: AbortOnDropHandle::new(watch),
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.end.reached.load(Ordering::Acquire) {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the connection's time is over",
            ));
        }
        Ok(())
    }
}

impl<IO: Connected> Connected for Bounded<IO> {
    type ConnectInfo = IO::ConnectInfo;

    fn connect_info(&self) -> IO::ConnectInfo {
        self.io.connect_info()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Bounded<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // hyper always has a read pending, and reads and writes in one task: one waker serves both.
        self.end.reader.register(cx.waker());
        self.check()?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Bounded<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn io_fails_after_the_lifetime() {
        let (_client, io) = tokio::io::duplex(64);
        let mut conn = Bounded::new(io, Duration::from_millis(1), CancellationToken::new());
        // Nothing arrives: only the end of the lifetime can wake the reader.
        let error = conn.read_u8().await.expect_err("over");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(conn.write_all(b"y").await.is_err());
    }

    #[tokio::test]
    async fn a_cut_ends_it_early() {
        let (mut client, io) = tokio::io::duplex(64);
        let cut = CancellationToken::new();
        let mut conn = Bounded::new(io, Duration::from_secs(3600), cut.clone());
        client.write_all(b"x").await.expect("open");
        assert_eq!(conn.read_u8().await.expect("young"), b'x');
        cut.cancel();
        assert!(conn.read_u8().await.is_err());
    }
}
