use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::time::SystemTime;

use ambit_proto::istio::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use ambit_proto::istio::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use ambit_proto::istio::ca::{IstioCertificateRequest, IstioCertificateResponse};
use ambit_tls::ServerStream;
use ambit_tls::authority::Root;
use ambit_tls::csr::PrivateKey;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tonic::transport::server::Connected;
use tonic::{Code, Request, Response, Status};

use super::*;

/// Answers with the headers that the call had.
struct Mirror;

#[tonic::async_trait]
impl IstioCertificateService for Mirror {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let seen = |name| {
            let value = request
                .metadata()
                .get(name)
                .and_then(|value| value.to_str().ok());
            value.unwrap_or("-").to_owned()
        };
        let cert_chain = vec![seen("authorization"), seen("clusterid"), seen("x-more")];
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

struct Stream(ServerStream<TcpStream>);

impl Connected for Stream {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn root() -> Root {
    Root::generate("test", SystemTime::now(), YEAR).unwrap()
}

/// A control plane on a local port whose certificate, by `root`, has `names`.
async fn start(root: &Root, names: &[&str]) -> SocketAddr {
    let key = PrivateKey::generate().unwrap();
    let chain = root
        .issue_server(&key, names, SystemTime::now(), YEAR)
        .unwrap();
    let tls = grpc::Server::new(&chain, &key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (accepted, incoming) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            if let Ok(stream) = tls.accept(tcp, Limits::default()).await {
                let _ = accepted.send(Ok::<_, std::io::Error>(Stream(stream))).await;
            }
        }
    });
    let incoming = tokio_stream::wrappers::ReceiverStream::new(incoming);
    let service = IstioCertificateServiceServer::new(Mirror);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(incoming));
    address
}

fn plane(address: SocketAddr, roots: Roots, token: &Path) -> ControlPlane {
    ControlPlane {
        address: format!("localhost:{}", address.port()),
        roots,
        token: TokenSource::File(token.to_owned()),
        cluster_id: "east".to_owned(),
        headers: vec![("X-More".to_owned(), "yes".to_owned())],
        alternative_names: Vec::new(),
        key_exchange: Default::default(),
    }
}

async fn ask(channel: &Channel) -> Result<Vec<String>, Status> {
    let mut client = IstioCertificateServiceClient::new(channel.clone());
    let answer = client
        .create_certificate(IstioCertificateRequest::default())
        .await?;
    Ok(answer.into_inner().cert_chain)
}

#[tokio::test]
async fn each_call_carries_the_token_of_the_moment_and_the_headers() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "first\n").unwrap();
    let root = root();
    let address = start(&root, &["localhost"]).await;
    let roots = Roots::Pem(root.certificate_pem());
    let channel = Channel::connect(&plane(address, roots, &token)).unwrap();
    assert_eq!(
        ask(&channel).await.unwrap(),
        ["Bearer first", "east", "yes"]
    );
    std::fs::write(&token, "second").unwrap();
    assert_eq!(
        ask(&channel).await.unwrap(),
        ["Bearer second", "east", "yes"]
    );
    std::fs::remove_file(&token).unwrap();
    let refused = ask(&channel).await.unwrap_err();
    assert!(refused.message().contains("cannot read"), "{refused:?}");
}

#[tokio::test]
async fn the_root_file_is_read_at_each_connection() {
    let folder = tempfile::tempdir().unwrap();
    let (token, path) = (folder.path().join("token"), folder.path().join("root.pem"));
    std::fs::write(&token, "t").unwrap();
    let (old, new) = (root(), root());
    let address = start(&new, &["localhost"]).await;
    let channel = Channel::connect(&plane(address, Roots::File(path.clone()), &token)).unwrap();
    assert!(ask(&channel).await.is_err(), "no file yet");
    std::fs::write(&path, old.certificate_pem()).unwrap();
    assert!(ask(&channel).await.is_err(), "the wrong root");
    std::fs::write(&path, new.certificate_pem()).unwrap();
    assert!(ask(&channel).await.is_ok(), "the right root");
}

#[tokio::test]
async fn another_name_is_accepted_only_when_configured() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "t").unwrap();
    let root = root();
    let address = start(&root, &["istiod.istio-system.svc"]).await;
    let mut plane = plane(address, Roots::Pem(root.certificate_pem()), &token);
    let refused = ask(&Channel::connect(&plane).unwrap()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    plane.alternative_names = vec!["istiod.istio-system.svc".to_owned()];
    assert!(ask(&Channel::connect(&plane).unwrap()).await.is_ok());
}

#[tokio::test]
async fn plaintext_and_nonsense_addresses_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let template = plane(
        "127.0.0.1:1".parse().unwrap(),
        Roots::Pem(String::new()),
        &folder.path().join("token"),
    );
    for (address, fine) in [
        ("https://istiod.istio-system.svc:15012", true),
        ("istiod:15012", true),
        ("[::1]:15012", true),
        ("http://istiod:15010", false),
        ("HTTP://istiod:15010", false),
        ("unix:///run/xds", false),
        ("", false),
        ("https://", false),
    ] {
        let plane = ControlPlane {
            address: address.to_owned(),
            ..template.clone()
        };
        assert_eq!(Channel::connect(&plane).is_ok(), fine, "{address}");
    }
    let headers = vec![("bad header".to_owned(), "x".to_owned())];
    let plane = ControlPlane {
        headers,
        ..template
    };
    assert!(matches!(
        Channel::connect(&plane),
        Err(ControlError::Header(_))
    ));
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "t").unwrap();
    let roots = Roots::Pem(root().certificate_pem());
    let plane = plane(listener.local_addr().unwrap(), roots, &token);
    let channel = Channel::connect(&plane).unwrap();
    let limit = CONNECT_TIMEOUT + Duration::from_secs(20);
    let answer = tokio::time::timeout(limit, ask(&channel))
        .await
        .expect("gives up by itself");
    assert!(answer.is_err());
}
