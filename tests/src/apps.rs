//! Applications: threads that live in a pod's namespace and serve until dropped.

pub mod bytes;
pub mod gateway;
pub mod heard;
pub mod http;
pub mod stream;

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ambit_net::listen::TcpListen;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::pod::Pod;

/// What an application saw.
#[derive(Debug, Default)]
pub struct Seen(Mutex<Vec<SocketAddr>>);

impl Seen {
    /// The peers of all connections so far, in order; IPv4-mapped addresses as IPv4.
    #[must_use]
    pub fn peers(&self) -> Vec<SocketAddr> {
        self.0.lock().clone()
    }

    /// How many connections came.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.lock().len()
    }
}

/// A running application; it ends, connections and all, when this is dropped.
#[derive(Debug)]
pub struct App {
    seen: Arc<Seen>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl App {
    /// What it saw.
    #[must_use]
    pub fn seen(&self) -> &Seen {
        &self.seen
    }
}

impl Drop for App {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Pod {
    /// Serves a port of this pod on both address families: `serve` makes the future that handles
    /// one connection. Listens when this returns.
    ///
    /// # Panics
    ///
    /// The port is in use in this pod.
    pub fn serve<F, S>(&self, port: u16, serve: S) -> App
    where
        F: Future<Output = io::Result<()>> + 'static,
        S: Fn(TcpStream, SocketAddr) -> F + Send + 'static,
    {
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let bound = self.netns().run(|| TcpListen::new(address).bind());
        let listener = bound.expect("the namespace").unwrap_or_else(|error| {
            panic!("{} port {port}: {error:?}", self.path());
        });
        let seen = Arc::new(Seen::default());
        let (end, ended) = oneshot::channel();
        let netns = Arc::clone(&self.netns);
        let thread = std::thread::Builder::new()
            .name(self.plan.name.clone())
            .spawn({
                let seen = Arc::clone(&seen);
                move || {
                    netns.enter().expect("the pod's namespace");
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build_local(tokio::runtime::LocalOptions::default())
                        .expect("a runtime");
                    runtime.block_on(async move {
                        tokio::select! {
                            _ = ended => {}
                            () = accept(listener, &seen, serve) => {}
                        }
                    });
                }
            });
        App {
            seen,
            end: Some(end),
            thread: Some(thread.expect("a thread")),
        }
    }
}

async fn accept<F>(
    listener: std::net::TcpListener,
    seen: &Seen,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = io::Result<()>> + 'static,
{
    let listener = TcpListener::from_std(listener).expect("a listener");
    loop {
        let (stream, peer) = listener.accept().await.expect("descriptors enough");
        let peer = ambit_net::original_dst::canonical(peer);
        seen.0.lock().push(peer);
        let _ = stream.set_nodelay(true);
        let serving = serve(stream, peer);
        // A connection that breaks is the test's business, which sees it at the other end.
        tokio::task::spawn_local(async move { drop(serving.await) });
    }
}
