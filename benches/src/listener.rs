//! A player who is bound and only listens: the target of the loads with pushes.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use client::{Client, ConnectOptions};
use tokio::sync::oneshot;

/// How long binding may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Listens on a thread of its own until it is dropped.
pub(crate) struct Listener {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Connects and binds.
    ///
    /// Errors: the server does not take it.
    pub(crate) fn bind(address: &str, name: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (address, name) = (address.to_owned(), name.to_owned());
        let (stop, stopped) = oneshot::channel();
        let (send_bound, bound) = mpsc::channel();
        let thread = thread::Builder::new().name("listener".into()).spawn(move || {
            runtime.block_on(async {
                match connect(&address, &name).await {
                    Ok(client) => {
                        let _ = send_bound.send(Ok(()));
                        listen(&client, stopped).await;
                    }
                    Err(error) => drop(send_bound.send(Err(error))),
                }
            });
        })?;
        let listener = Self { stop: Some(stop), thread: Some(thread) };
        bound.recv_timeout(PATIENCE).context("the listener is not bound in time")??;
        Ok(listener)
    }
}

async fn connect(address: &str, name: &str) -> Result<Client> {
    let client = Client::connect(address, ConnectOptions::default()).await?;
    client.request("room.test.bind", format!("{{\"name\":\"{name}\"}}").as_bytes()).await?;
    Ok(client)
}

async fn listen(client: &Client, mut stopped: oneshot::Receiver<()>) {
    let mut pushes = client.subscribe("onPush");
    loop {
        tokio::select! {
            push = pushes.next() => if push.is_none() { return },
            _ = &mut stopped => return client.disconnect().await,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
