//! A closed loop of calls: so many connections, so many calls in flight on each, for so long.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::cli::exit::{Failure, Result};

/// How calls are made.
pub struct Load<C> {
    /// One TLS connection each.
    pub connections: Vec<C>,
    /// Calls in flight on each connection.
    pub in_flight: usize,
    /// How long, after a warm-up of a tenth of it.
    pub duration: Duration,
}

/// What was seen.
pub struct Measured {
    /// Calls per second.
    pub rate: f64,
    /// Median latency.
    pub p50: Duration,
    /// 99th percentile of latency.
    pub p99: Duration,
}

impl<C: Clone + Send + 'static> Load<C> {
    /// Calls until the time is over. The first failed call fails the run: a rate of refusals means nothing.
    pub async fn run<F, Fut, E>(&self, call: F) -> Result<Measured>
    where
        F: Fn(C) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = std::result::Result<(), E>> + Send + 'static,
        E: Into<Failure> + Send + 'static,
    {
        self.drive(&call, self.duration / 10).await?;
        let began = Instant::now();
        let mut latencies = self.drive(&call, self.duration).await?;
        let elapsed = began.elapsed();
        latencies.sort_unstable();
        let at = |share: f64| {
            let index = (latencies.len() as f64 * share) as usize;
            latencies
                .get(index.min(latencies.len().saturating_sub(1)))
                .copied()
                .unwrap_or_default()
        };
        Ok(Measured {
            rate: latencies.len() as f64 / elapsed.as_secs_f64(),
            p50: at(0.50),
            p99: at(0.99),
        })
    }

    async fn drive<F, Fut, E>(&self, call: &F, duration: Duration) -> Result<Vec<Duration>>
    where
        F: Fn(C) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = std::result::Result<(), E>> + Send + 'static,
        E: Into<Failure> + Send + 'static,
    {
        let end = Instant::now() + duration;
        let mut tasks = JoinSet::new();
        for connection in &self.connections {
            for _ in 0..self.in_flight {
                let (call, connection) = (call.clone(), connection.clone());
                tasks.spawn(async move {
                    let mut latencies = Vec::new();
                    loop {
                        let began = Instant::now();
                        if began >= end {
                            return Ok::<_, E>(latencies);
                        }
                        call(connection.clone()).await?;
                        latencies.push(began.elapsed());
                    }
                });
            }
        }
        let mut all = Vec::new();
        while let Some(task) = tasks.join_next().await {
            let latencies = task.map_err(Failure::other)?;
            all.extend(latencies.map_err(Into::into)?);
        }
        Ok(all)
    }
}
