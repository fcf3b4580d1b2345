//! A TCP proxy in front of a Unix socket that can stop forwarding: a network that loses a machine. Connections stay open
//! and new ones are accepted; bytes wait until it forwards again.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, UnixStream},
    sync::watch,
    task::JoinHandle,
};

/// A running proxy; it ends with the value.
pub struct Proxy {
    address: SocketAddr,
    forwards: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Forwards from a free port to the socket at `path`.
    pub async fn start(path: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (forwards, gate) = watch::channel(true);
        let task = tokio::spawn(accept(listener, path.to_owned(), gate));
        Self {
            address,
            forwards,
            task,
        }
    }

    /// In front of the PostgreSQL server of this URL, which names its socket's directory; and the URL by way of it.
    pub async fn before_postgres(url: &str) -> (Self, String) {
        let mut url = url::Url::parse(url).expect("a URL");
        let host = url.query_pairs().find(|(name, _)| name == "host");
        let (_, directory) = host.expect("a socket's directory");
        let proxy = Self::start(&Path::new(&*directory).join(".s.PGSQL.5432")).await;
        url.set_query(Some("sslmode=disable"));
        url.set_host(Some("127.0.0.1")).expect("a host");
        url.set_port(Some(proxy.address.port())).expect("a port");
        (proxy, url.into())
    }

    pub fn stop_forwarding(&self) {
        self.forwards.send_replace(false);
    }

    pub fn forward_again(&self) {
        self.forwards.send_replace(true);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, path: PathBuf, gate: watch::Receiver<bool>) {
    while let Ok((client, _)) = listener.accept().await {
        let (path, gate) = (path.clone(), gate.clone());
        tokio::spawn(async move {
            let Ok(server) = UnixStream::connect(path).await else {
                return;
            };
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::join!(
                forward(from_client, to_server, gate.clone()),
                forward(from_server, to_client, gate)
            );
        });
    }
}

async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut gate: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        if gate.wait_for(|forwards| *forwards).await.is_err() {
            return;
        }
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}
