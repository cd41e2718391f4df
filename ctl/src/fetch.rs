//! GET from an admin server.

use std::net::SocketAddr;
use std::time::Duration;

use ambit_net::dial::Dial;
use ambit_net::netns::Netns;
use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::Uri;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::time::timeout;

/// An admin server is on this machine: one that does not answer within this time does not answer at all.
const PATIENCE: Duration = Duration::from_secs(10);
/// A state of a hundred thousand workloads fits; more is a mistake.
const LARGEST: usize = 256 << 20;

/// How to ask.
#[derive(Debug)]
pub struct Ask {
    /// From this namespace; from our own if absent.
    pub netns: Option<Netns>,
}

impl Ask {
    /// The JSON at `path` of the server at `base`.
    ///
    /// # Errors
    /// In words for people: nobody listens, the answer is not 200, or not JSON.
    pub async fn json(&self, base: &str, path: &str) -> anyhow::Result<Value> {
        let answer = timeout(PATIENCE, self.get(base, path)).await;
        let body = answer.map_err(|_| anyhow!("{base} did not answer within {PATIENCE:?}"))??;
        serde_json::from_slice(&body)
            .with_context(|| format!("{base}{path}: the answer is not JSON"))
    }

    async fn get(&self, base: &str, path: &str) -> anyhow::Result<Bytes> {
        let (address, authority) = address(base).await?;
        let dial = Dial {
            to: address,
            source: None,
            mark: None,
            netns: self.netns.as_ref(),
            timeout: PATIENCE,
            keepalive: None,
        };
        let stream = dial.connect().await.with_context(|| {
            format!(
                "nothing answers at {base} (admin ports listen on the node's localhost: run there, or give --netns)"
            )
        })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = http::Request::get(path)
            .header(http::header::HOST, authority)
            .body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST).collect().await;
        let body = body
            .map_err(|error| anyhow!("{base}{path}: {error}"))?
            .to_bytes();
        driver.abort();
        if !status.is_success() {
            let said = String::from_utf8_lossy(&body);
            let said = said.trim();
            bail!(
                "{}",
                if said.is_empty() {
                    format!("{base}{path}: {status}")
                } else {
                    said.to_owned()
                }
            );
        }
        Ok(body)
    }
}

async fn address(base: &str) -> anyhow::Result<(SocketAddr, String)> {
    let uri: Uri = base
        .parse()
        .with_context(|| format!("`{base}` is not a URL"))?;
    if uri.scheme_str().is_some_and(|scheme| scheme != "http") {
        bail!("`{base}`: admin servers speak plain http");
    }
    let host = uri
        .host()
        .ok_or_else(|| anyhow!("`{base}` names no host"))?;
    let port = uri.port_u16().unwrap_or(80);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let mut found = tokio::net::lookup_host((bare, port))
        .await
        .with_context(|| host.to_owned())?;
    let address = found
        .next()
        .ok_or_else(|| anyhow!("`{host}` has no address"))?;
    Ok((address, format!("{host}:{port}")))
}
