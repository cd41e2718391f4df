//! A real Envoy in a waypoint's place, on what the controller serves; and one at the end of
//! [`tunnels`], and beside applications in [`sidecar`].
//!
//! Envoy takes its listeners, clusters and endpoints over the controller's discovery stream with the
//! waypoint's own token, as our waypoint does; nothing is changed on the way. What pilot-agent does
//! for it in Istio is done here: a bootstrap, and the certificate by the name under which the
//! listeners ask for it.

pub mod sidecar;
pub mod tunnels;

use std::convert::Infallible;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bytes::{BufMut, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::apps::App;
use crate::mint::Credentials;
use crate::network::{CONTROLLER, CONTROLLER_NAME};
use crate::pod::Pod;

/// Where the certificate is served in the pod: the cluster `sds-grpc`, as the listeners call it.
pub const SECRETS: u16 = 15100;
/// A length before each message on a gRPC stream, and a byte that says whether it is compressed.
const PREFIX: usize = 5;

/// Envoy's file: `$ENVOY`, or what `scripts/needs.sh` installs.
///
/// # Errors
///
/// There is none.
pub fn program() -> Result<PathBuf> {
    let path = std::env::var_os("ENVOY").map_or_else(
        || {
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../target/tools/envoy-1.40.0/envoy/_bin/envoy")
        },
        PathBuf::from,
    );
    // Envoy runs in another directory's view of things: names must be whole.
    fs::canonicalize(&path).with_context(|| format!("{}: scripts/needs.sh gets it", path.display()))
}

/// What Envoy is started with.
#[must_use]
pub fn bootstrap(pod: &Pod, root: &Path, token: &str) -> Value {
    let (namespace, name) = (&pod.plan.namespace, &pod.plan.name);
    let ads = json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"});
    let header = |key: &str, value: &str| json!({"key": key, "value": value});
    json!({
        "node": {
            "id": format!("waypoint~{}~{name}.{namespace}~{namespace}.svc.cluster.local", pod.ipv4()),
            "cluster": format!("{name}.{namespace}"),
            "metadata": {
                "NAMESPACE": namespace, "SERVICE_ACCOUNT": pod.plan.service_account,
                "CLUSTER_ID": "Kubernetes",
            },
        },
        "admin": {"address": address("127.0.0.1", 15000)},
        "dynamic_resources": {
            "lds_config": ads, "cds_config": ads,
            "ads_config": {
                "api_type": "DELTA_GRPC", "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{
                    "envoy_grpc": {"cluster_name": "xds-grpc"},
                    "initial_metadata": [
                        header("authorization", &format!("Bearer {token}")),
                        header("clusterid", "Kubernetes"),
                    ],
                }],
            },
        },
        "static_resources": {"clusters": [
            cluster("xds-grpc", &CONTROLLER.to_string(), 15012, Some(&tls(root))),
            cluster("sds-grpc", "127.0.0.1", SECRETS, None),
        ]},
        "bootstrap_extensions": [{
            "name": "envoy.bootstrap.internal_listener",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3.InternalListener",
            },
        }],
    })
}

fn address(ip: &str, port: u16) -> Value {
    json!({"socket_address": {"address": ip, "port_value": port}})
}

fn tls(root: &Path) -> Value {
    json!({
        "name": "tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": CONTROLLER_NAME,
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                // A client of Envoy's stops at 1.2 unless told.
                "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
                "validation_context": {"trusted_ca": {"filename": root}},
            },
        },
    })
}

fn cluster(name: &str, ip: &str, port: u16, socket: Option<&Value>) -> Value {
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(ip, port)}}]}],
        },
        "typed_extension_protocol_options": {options: {
            "@type": format!("type.googleapis.com/{options}"),
            "explicit_http_config": {"http2_protocol_options": {}},
        }},
    });
    if let Some(socket) = socket {
        cluster["transport_socket"] = socket.clone();
    }
    cluster
}

// The few messages of secret discovery that are spoken here, by Envoy's numbers.

#[derive(Clone, PartialEq, Message)]
struct DiscoveryRequest {
    #[prost(string, repeated, tag = "3")]
    resource_names: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct DiscoveryResponse {
    #[prost(string, tag = "1")]
    version_info: String,
    #[prost(message, repeated, tag = "2")]
    resources: Vec<Any>,
    #[prost(string, tag = "4")]
    type_url: String,
    #[prost(string, tag = "5")]
    nonce: String,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Secret {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    tls_certificate: Option<TlsCertificate>,
    #[prost(message, optional, tag = "4")]
    validation_context: Option<ValidationContext>,
}

#[derive(Clone, PartialEq, Message)]
struct TlsCertificate {
    #[prost(message, optional, tag = "1")]
    certificate_chain: Option<DataSource>,
    #[prost(message, optional, tag = "2")]
    private_key: Option<DataSource>,
}

#[derive(Clone, PartialEq, Message)]
struct ValidationContext {
    #[prost(message, optional, tag = "1")]
    trusted_ca: Option<DataSource>,
}

#[derive(Clone, PartialEq, Message)]
struct DataSource {
    #[prost(string, tag = "3")]
    inline_string: String,
}

/// The two secrets that the listeners name.
#[derive(Debug, Clone)]
struct Secrets {
    chain: String,
    key: String,
    root: String,
}

impl Secrets {
    fn answer(&self, names: &[String]) -> DiscoveryResponse {
        const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
        let text = |text: &String| {
            Some(DataSource {
                inline_string: text.clone(),
            })
        };
        let resources = names.iter().filter_map(|name| {
            let mut secret = Secret {
                name: name.clone(),
                ..Secret::default()
            };
            match name.as_str() {
                "default" => {
                    secret.tls_certificate = Some(TlsCertificate {
                        certificate_chain: text(&self.chain),
                        private_key: text(&self.key),
                    });
                }
                "ROOTCA" => {
                    secret.validation_context = Some(ValidationContext {
                        trusted_ca: text(&self.root),
                    });
                }
                _ => return None,
            }
            Some(Any {
                type_url: SECRET.to_owned(),
                value: secret.encode_to_vec(),
            })
        });
        DiscoveryResponse {
            version_info: "1".to_owned(),
            resources: resources.collect(),
            type_url: SECRET.to_owned(),
            nonce: "1".to_owned(),
        }
    }
}

impl Pod {
    /// Serves a certificate to an Envoy in this pod, on [`SECRETS`].
    pub fn serve_secrets(&self, credentials: &Credentials) -> App {
        let (root, chain) = credentials.chain.split_last().expect("a chain");
        let secrets = Secrets {
            chain: chain.concat(),
            key: credentials.key.clone(),
            root: root.clone(),
        };
        self.serve(SECRETS, move |stream, _| {
            let secrets = secrets.clone();
            async move {
                let answering = service_fn(move |request| {
                    let answer = stream_secrets(secrets.clone(), request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), answering)
                    .await
                    .map_err(io::Error::other)
            }
        })
    }
}

/// Answers each request of a stream that asks for other names than the one before; the rest are
/// acknowledgements.
fn stream_secrets(
    secrets: Secrets,
    request: Request<Incoming>,
) -> Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>> {
    let (send, mut receive) = mpsc::channel::<Frame<Bytes>>(4);
    tokio::spawn(async move {
        let (mut body, mut read, mut asked) = (request.into_body(), BytesMut::new(), Vec::new());
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else {
                continue;
            };
            read.extend_from_slice(&data);
            while let Some(message) = message(&mut read) {
                let names = DiscoveryRequest::decode(message)
                    .map_or_else(|_| Vec::new(), |request| request.resource_names);
                if names == asked {
                    continue;
                }
                let answer = secrets.answer(&names).encode_to_vec();
                asked = names;
                let mut framed = BytesMut::with_capacity(PREFIX + answer.len());
                framed.put_u8(0);
                framed.put_u32(u32::try_from(answer.len()).expect("two certificates"));
                framed.put_slice(&answer);
                if send.send(Frame::data(framed.freeze())).await.is_err() {
                    return;
                }
            }
        }
    });
    let frames = futures_util::stream::poll_fn(move |cx| {
        receive
            .poll_recv(cx)
            .map(|frame| frame.map(Ok::<_, Infallible>))
    });
    let mut response = Response::new(StreamBody::new(frames));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Takes one whole message off what was read.
fn message(read: &mut BytesMut) -> Option<Bytes> {
    let length = u32::from_be_bytes(read.get(1..PREFIX)?.try_into().ok()?);
    let end = PREFIX + usize::try_from(length).ok()?;
    (read.len() >= end).then(|| read.split_to(end).freeze().slice(PREFIX..))
}
