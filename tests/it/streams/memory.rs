//! A large stream needs no more memory than a small one.

use std::{fs, time::Duration};

use ::bytes::Bytes;
use aws_lc_rs::digest::{Context, SHA256};
use futures_util::{StreamExt, stream};

use super::{plain, secret, start_opening, start_sealing, vault};
use crate::daemon::{Daemon, Engine};

/// Bytes through the pipe. `make bench` sends 1 GiB through an optimised build; this one is not.
const LENGTH: usize = 128 << 20;
const PIECE: usize = 256 << 10;
/// What the daemon may grow by meanwhile: buffers and windows of two connections, and the allocator's slack.
const MOST: u64 = 64 << 20;

/// The largest resident size of a process so far, in bytes.
fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.expect("VmHWM").trim().parse::<u64>().expect("a number") << 10
}

/// Sends `length` bytes through EncryptStream | DecryptStream; the digests of what went in and what came out.
async fn pipe(daemon: &Daemon, length: usize) -> [Vec<u8>; 2] {
    let service = daemon.actor("service");
    let went_in = std::sync::Arc::new(std::sync::Mutex::new(Context::new(&SHA256)));
    let hash = std::sync::Arc::clone(&went_in);
    let pieces = stream::iter((0..length / PIECE).map(move |i| {
        let mut piece = vec![(i % 251) as u8; PIECE];
        piece[..8].copy_from_slice(&(i as u64).to_be_bytes());
        hash.lock().expect("no panic").update(&piece);
        plain(Bytes::from(piece))
    }));
    let asked = stream::iter([start_sealing("4711")]).chain(pieces);
    let sealed = service.crypto().encrypt_stream(asked).await;
    let sealed = sealed.expect("EncryptStream").into_inner();
    let sealed = sealed.map(|answer| secret(answer.expect("a piece").data));
    let asked = stream::iter([start_opening("4711")]).chain(sealed);
    // Over a connection of its own: the windows of one would be shared by both.
    let reader = daemon.actor_with(Some(daemon.leaf("service")));
    let opened = reader.crypto().decrypt_stream(asked).await;
    let mut opened = opened.expect("DecryptStream").into_inner();
    let mut came_out = Context::new(&SHA256);
    while let Some(answer) = opened.message().await.expect("a whole stream") {
        came_out.update(&answer.data);
    }
    let went_in = went_in.lock().expect("no panic").clone();
    [went_in, came_out].map(|hash| hash.finish().as_ref().to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_stream_comes_back_whole_in_constant_memory() {
    let daemon = Daemon::start(Engine::Sqlite).await;
    vault(&daemon).await;
    // Connections, caches and code pages are there now.
    let [went_in, came_out] = pipe(&daemon, 1 << 20).await;
    assert_eq!(went_in, came_out);
    let before = peak(daemon.pid());
    let began = std::time::Instant::now();
    let [went_in, came_out] = pipe(&daemon, LENGTH).await;
    assert!(went_in == came_out, "other bytes came out than went in");
    let (took, after) = (
        began.elapsed().max(Duration::from_millis(1)),
        peak(daemon.pid()),
    );
    println!(
        "{} MiB through EncryptStream | DecryptStream: {:.0} MiB/s, peak memory {} -> {} MiB",
        LENGTH >> 20,
        (LENGTH >> 20) as f64 / took.as_secs_f64(),
        before >> 20,
        after >> 20,
    );
    assert!(after - before < MOST, "{before} -> {after} bytes");
    daemon.stop().await;
}
