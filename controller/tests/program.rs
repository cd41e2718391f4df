//! The program itself: keys, tokens, discovery and certificates over its TLS port.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends at what does not fit"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ambit_model::identity::Identity;
use ambit_proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use ambit_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status};
use ambit_proto::istio::ca::IstioCertificateRequest;
use ambit_proto::istio::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use ambit_proto::type_url::{ADDRESS, AUTHORIZATION, CLUSTER, LISTENER};
use ambit_tls::csr::KeyAndCsr;
use ambit_tls::{Limits, Svid, grpc};
use hyper_util::rt::TokioIo;
use prost_types::{Struct, Value, value::Kind};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Streaming};
use tower::service_fn;

const SHOP: &str = include_str!("shop.yaml");

/// A running controller; it ends with this.
struct Controller {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
    folder: tempfile::TempDir,
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_controller"))
}

/// The address behind `key=` in a line.
fn address(line: &str, key: &str) -> SocketAddr {
    let after = line
        .split(&format!("{key}="))
        .nth(1)
        .unwrap_or_else(|| panic!("{line}"));
    after
        .split([' ', '\t'])
        .next()
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

impl Controller {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("manifests")).unwrap();
        fs::write(folder.path().join("manifests/shop.yaml"), SHOP).unwrap();
        let mut child = program()
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .arg("--manifests")
            .arg(folder.path().join("manifests"))
            .arg("--state")
            .arg(folder.path().join("state"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines
            .by_ref()
            .map_while(Result::ok)
            .find(|line| line.contains("serving"));
        let line = line.unwrap();
        // Somebody has to read what it goes on to say.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let (address, admin) = (address(&line, "listen"), address(&line, "admin"));
        Self {
            child,
            address,
            admin,
            folder,
        }
    }

    fn state(&self) -> std::path::PathBuf {
        self.folder.path().join("state")
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.folder.path().join("manifests").join(file), text).unwrap();
    }

    fn token(&self, arguments: &[&str]) -> String {
        let mut command = program();
        command
            .arg("token")
            .arg("--state")
            .arg(self.state())
            .args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn node_token(&self) -> String {
        self.token(&[
            "--namespace",
            "istio-system",
            "--service-account",
            "ztunnel",
            "--pod",
            "ztunnel-1",
            "--pod-uid",
            "z1",
            "--node",
            "node-1",
        ])
    }

    async fn channel(&self) -> Channel {
        let roots = fs::read_to_string(self.state().join("root-cert.pem")).unwrap();
        let tls = grpc::Client::new(&roots, "istiod.istio-system.svc").unwrap();
        let address = self.address;
        let connector = service_fn(move |_| {
            let tls = tls.clone();
            async move {
                let socket = TcpStream::connect(address).await?;
                let stream = tls.connect(socket, Limits::default()).await;
                stream.map(TokioIo::new).map_err(std::io::Error::other)
            }
        });
        let endpoint = Endpoint::from_static("https://istiod.istio-system.svc:15012");
        endpoint.connect_with_connector(connector).await.unwrap()
    }

    async fn sign(&self, token: Option<&str>, wanted: Option<&str>) -> Result<Vec<String>, Code> {
        let key =
            KeyAndCsr::generate(&"spiffe://cluster.local/ns/any/sa/any".parse().unwrap()).unwrap();
        self.sign_with(&key, token, wanted).await
    }

    async fn sign_with(
        &self,
        key: &KeyAndCsr,
        token: Option<&str>,
        wanted: Option<&str>,
    ) -> Result<Vec<String>, Code> {
        let metadata = wanted.map(|wanted| fields(&[("ImpersonatedIdentity", wanted)]));
        let request = IstioCertificateRequest {
            csr: key.csr_pem.clone(),
            validity_duration: 3600,
            metadata,
        };
        let mut client = IstioCertificateServiceClient::new(self.channel().await);
        let answer = client.create_certificate(with_token(request, token)).await;
        answer
            .map(|answer| answer.into_inner().cert_chain)
            .map_err(|status| status.code())
    }

    async fn get(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut socket = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).await.unwrap();
        text
    }
}

fn fields(pairs: &[(&str, &str)]) -> Struct {
    let value = |text: &str| Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    };
    Struct {
        fields: pairs
            .iter()
            .map(|(key, text)| ((*key).to_owned(), value(text)))
            .collect(),
    }
}

fn with_token<T>(message: T, token: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        let value = format!("Bearer {}", token.trim()).parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}

/// One client's stream.
struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Stream {
    async fn open(controller: &Controller, token: &str, id: &str, types: &[&str]) -> Self {
        let (requests, queue) = mpsc::channel(8);
        for type_url in types {
            let request = DeltaDiscoveryRequest {
                node: Some(Node {
                    id: id.to_owned(),
                    ..Node::default()
                }),
                type_url: (*type_url).to_owned(),
                ..DeltaDiscoveryRequest::default()
            };
            requests.send(request).await.unwrap();
        }
        let mut client = AggregatedDiscoveryServiceClient::new(controller.channel().await);
        let request = with_token(ReceiverStream::new(queue), Some(token));
        let responses = client
            .delta_aggregated_resources(request)
            .await
            .unwrap()
            .into_inner();
        Self {
            requests,
            responses,
        }
    }

    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Code> {
        let next = timeout(Duration::from_secs(10), self.responses.message())
            .await
            .unwrap();
        next.map(Option::unwrap).map_err(|status| status.code())
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response
        .resources
        .iter()
        .map(|resource| resource.name.as_str())
        .collect()
}

#[tokio::test]
async fn signs_for_who_proves_to_be_somebody_and_refuses_everyone_else() {
    let controller = Controller::start();
    let web = controller.token(&["--namespace", "shop", "--service-account", "web"]);
    let identity: Identity = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
    let key = KeyAndCsr::generate(&identity).unwrap();
    let chain = controller.sign_with(&key, Some(&web), None).await.unwrap();
    let svid = Svid::from_chain(&key.key, &chain).unwrap();
    assert_eq!(
        svid.identity(),
        &identity,
        "whatever the request's own names are"
    );

    let node = controller.node_token();
    let cart = "spiffe://cluster.local/ns/shop/sa/cart";
    assert!(controller.sign(Some(&node), Some(cart)).await.is_ok());
    let refused = Err(Code::Unauthenticated);
    assert_eq!(controller.sign(Some(&web), Some(cart)).await, refused);
    let elsewhere = "spiffe://cluster.local/ns/other/sa/guest";
    assert_eq!(controller.sign(Some(&node), Some(elsewhere)).await, refused);
    assert_eq!(controller.sign(None, None).await, refused);
    assert_eq!(controller.sign(Some("nonsense"), None).await, refused);
    let other_audience = controller.token(&[
        "--namespace",
        "shop",
        "--service-account",
        "web",
        "--audience",
        "x",
    ]);
    assert_eq!(controller.sign(Some(&other_audience), None).await, refused);
    let metrics = controller.get("/metrics").await;
    assert!(
        metrics.contains("ambit_ca_certificates_signed_total 2"),
        "{metrics}"
    );
    assert!(
        metrics.contains("ambit_ca_requests_refused_total 5"),
        "{metrics}"
    );
    assert!(metrics.contains("ambit_tokens_denied_total 3"), "{metrics}");
}

#[tokio::test]
async fn follows_the_folder_and_keeps_what_is_broken_out() {
    let controller = Controller::start();
    let token = controller.node_token();
    let mut stream = Stream::open(
        &controller,
        &token,
        "ztunnel~10.0.0.1~z.i~i",
        &[ADDRESS, AUTHORIZATION],
    )
    .await;
    let first = stream.next().await.unwrap();
    assert_eq!(
        (first.type_url.as_str(), first.resources.len()),
        (ADDRESS, 12)
    );
    let second = stream.next().await.unwrap();
    assert_eq!(
        (second.type_url.as_str(), second.resources.len()),
        (AUTHORIZATION, 0)
    );

    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: p\n  namespace: shop\nspec:\n  action: DENY\n  rules: [{}]\n";
    controller.write("policy.yaml", policy);
    let added = stream.next().await.unwrap();
    assert_eq!(names(&added), ["shop/p"]);

    // Broken: it stays as it was. The next thing that arrives is of another file.
    controller.write("policy.yaml", &policy.replace("DENY", "[DENY"));
    controller.write("ns.yaml", &policy.replace("name: p", "name: q"));
    let next = stream.next().await.unwrap();
    assert_eq!(
        (names(&next), next.removed_resources.len()),
        (vec!["shop/q"], 0)
    );
    let problems = controller.get("/debug/problems").await;
    assert!(problems.contains("policy.yaml:"), "{problems}");

    let nack = DeltaDiscoveryRequest {
        type_url: AUTHORIZATION.to_owned(),
        response_nonce: next.nonce,
        error_detail: Some(Status {
            message: "shop/q: no".to_owned(),
            ..Status::default()
        }),
        ..DeltaDiscoveryRequest::default()
    };
    stream.requests.send(nack).await.unwrap();
    fs::remove_file(controller.folder.path().join("manifests/policy.yaml")).unwrap();
    let removed = stream.next().await.unwrap();
    assert_eq!(removed.removed_resources, ["shop/p"]);
    let clients = controller.get("/debug/clients").await;
    assert!(clients.contains("shop/q: no"), "{clients}");
    assert!(
        controller
            .get("/metrics")
            .await
            .contains("ambit_xds_rejections_total{type=\"Authorization\"} 1")
    );
}

#[tokio::test]
async fn a_waypoint_gets_its_own_resources_and_a_stranger_none() {
    let controller = Controller::start();
    let waypoint = controller.token(&[
        "--namespace",
        "shop",
        "--service-account",
        "waypoint",
        "--pod",
        "waypoint-1",
        "--pod-uid",
        "p1",
    ]);
    let mut stream = Stream::open(
        &controller,
        &waypoint,
        "waypoint~10.0.1.9~w.s~s",
        &[CLUSTER, LISTENER],
    )
    .await;
    let clusters = stream.next().await.unwrap();
    assert!(names(&clusters).contains(&"connect_originate"));
    let listeners = stream.next().await.unwrap();
    assert_eq!(
        names(&listeners),
        ["connect_originate", "connect_terminate", "main_internal"]
    );

    let cart = controller.token(&["--namespace", "shop", "--service-account", "cart"]);
    for id in ["ztunnel~1~a~b", "waypoint~1~a~b", "sidecar~1~a~b"] {
        let mut stream = Stream::open(&controller, &cart, id, &[ADDRESS]).await;
        assert_eq!(stream.next().await, Err(Code::PermissionDenied), "{id}");
    }
}

#[test]
fn says_what_is_wrong_in_a_folder_without_serving_it() {
    let folder = tempfile::tempdir().unwrap();
    let check = |folder: &Path| {
        let output = program()
            .arg("check")
            .arg("--manifests")
            .arg(folder)
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    fs::write(folder.path().join("shop.yaml"), SHOP).unwrap();
    let (_, told) = check(folder.path());
    assert!(!told.contains("bad.yaml"), "{told}");
    fs::write(
        folder.path().join("bad.yaml"),
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n",
    )
    .unwrap();
    let (clean, told) = check(folder.path());
    assert!(!clean);
    assert!(
        told.contains("bad.yaml:4: metadata.namespace: this Pod has no namespace"),
        "{told}"
    );
    let versions: BTreeMap<bool, String> = [("--help", true), ("--version", false)]
        .map(|(flag, help)| {
            (
                help,
                String::from_utf8(program().arg(flag).output().unwrap().stdout).unwrap(),
            )
        })
        .into();
    assert!(versions[&true].contains("serve") && versions[&false].starts_with("controller "));
}
