//! A gateway into another network: it ends the tunnel that is asked for a service by name, and
//! passes what is in it on, untouched, to one address.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use ambit_hbone::{Request, Settings, StreamIo, server};
use ambit_tls::{Limits, Svid};
use parking_lot::Mutex;
use tokio::net::TcpStream;

use super::App;
use crate::pod::Pod;

/// The requests that a gateway was sent.
#[derive(Debug, Default)]
pub struct Requests(Mutex<Vec<Request>>);

impl Requests {
    /// All of them so far, in order.
    #[must_use]
    pub fn all(&self) -> Vec<Request> {
        self.0.lock().clone()
    }
}

impl Pod {
    /// Serves as the gateway, as whom `svid` says; everything goes on to `to`.
    pub fn serve_gateway(
        &self,
        port: u16,
        svid: Arc<Svid>,
        to: SocketAddr,
    ) -> (App, Arc<Requests>) {
        let requests = Arc::new(Requests::default());
        let seen = Arc::clone(&requests);
        let app = self.serve(port, move |stream, _| {
            let (svid, seen) = (Arc::clone(&svid), Arc::clone(&seen));
            async move { tunnels(stream, &svid, &seen, to).await }
        });
        (app, requests)
    }
}

async fn tunnels(
    stream: TcpStream,
    svid: &Svid,
    seen: &Requests,
    to: SocketAddr,
) -> io::Result<()> {
    let (stream, peer) = ambit_tls::accept(svid, stream, Limits::default())
        .await
        .map_err(io::Error::other)?;
    let never = std::future::pending();
    let mut incoming = server::serve(stream, peer, &Settings::default(), never)
        .await
        .map_err(io::Error::other)?;
    while let Some(Ok(exchange)) = incoming.next().await {
        seen.0.lock().push(exchange.request().clone());
        let mut onward = TcpStream::connect(to).await?;
        let stream = exchange.accept(http::HeaderMap::new())?;
        tokio::task::spawn_local(async move {
            let mut inner = StreamIo::from(stream);
            // What breaks here breaks at the ends, which are the test's business.
            let _ = tokio::io::copy_bidirectional(&mut inner, &mut onward).await;
        });
    }
    Ok(())
}
