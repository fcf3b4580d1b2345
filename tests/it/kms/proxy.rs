//! A TCP proxy that can stop being one: connections reset, or open and silent.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// What happens to connections, the open ones too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Bytes go through.
    Pass,
    /// TCP resets.
    Reset,
    /// Bytes are taken and nothing comes back.
    Hang,
}

pub struct Proxy {
    pub address: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (mode, modes) = watch::channel(Mode::Pass);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, target, modes.clone()));
            }
        });
        Self {
            address,
            mode: Arc::new(mode),
        }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn relay(mut client: TcpStream, target: SocketAddr, mut modes: watch::Receiver<Mode>) {
    let Ok(mut server) = TcpStream::connect(target).await else {
        return;
    };
    let (mut asked, mut answered) = ([0; 16 << 10], [0; 16 << 10]);
    loop {
        let mode = *modes.borrow_and_update();
        match mode {
            Mode::Pass => {}
            Mode::Reset => {
                let _ = client.set_zero_linger();
                return;
            }
            // Reads what comes, so that the client has sent all and waits.
            Mode::Hang => loop {
                match client.read(&mut asked).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
            },
        }
        let moved = tokio::select! {
            _ = modes.changed() => continue,
            read = client.read(&mut asked) => match read {
                Ok(0) | Err(_) => return,
                Ok(n) => server.write_all(&asked[..n]).await,
            },
            read = server.read(&mut answered) => match read {
                Ok(0) | Err(_) => return,
                Ok(n) => client.write_all(&answered[..n]).await,
            },
        };
        if moved.is_err() {
            return;
        }
    }
}
