//! A channel to an agent of this machine, over its unix socket.
//!
//! The kernel says who is at the other end: there is neither TLS nor a token, and the socket's place in the file system is
//! what both sides trust. Connects when it is used and again when the connection is gone. No keepalive: the kernel tells
//! when the other end is gone, and gRPC servers in Go send away a client that asks more often than every five minutes.

use std::path::{Path, PathBuf};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower::{Service, service_fn};

/// Time to connect. A local agent that is there accepts at once; one whose queue is full does not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A channel to a unix socket. Cheap to clone; clones share the connection.
#[derive(Debug, Clone)]
pub struct LocalChannel(Channel);

impl LocalChannel {
    /// A channel to the socket at `path`. Connects nothing yet.
    ///
    /// # Assumptions
    /// Called within the control runtime, which then runs the connection.
    #[must_use]
    pub fn connect(path: &Path) -> Self {
        let path: PathBuf = path.into();
        let connector = service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The name goes into `:authority`, of which an agent takes no notice.
        let endpoint = Endpoint::from_static("http://localhost").connect_timeout(CONNECT_TIMEOUT);
        Self(endpoint.connect_with_connector_lazy(connector))
    }
}

impl Service<http::Request<Body>> for LocalChannel {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = <Channel as Service<http::Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.0.call(request)
    }
}
