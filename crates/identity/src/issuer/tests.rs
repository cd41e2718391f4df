use std::time::SystemTime;

use ambit_proto::istio::ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use ambit_tls::authority::{Request as SigningRequest, Root};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Script {
    Sign,
    SignAnotherKey,
    SignAnotherIdentity,
    LeafOnly,
    Nothing,
    Garbage,
    Endless,
    Refuse,
    Down,
}

struct Authority {
    script: Script,
    root: Root,
    seen: mpsc::UnboundedSender<IstioCertificateRequest>,
}

#[tonic::async_trait]
impl IstioCertificateService for Authority {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let request = request.into_inner();
        let web = identity("web");
        let sign = |csr: &str, identity| {
            let csr = SigningRequest::from_pem(csr).unwrap();
            self.root
                .issue(&csr, identity, SystemTime::now(), DAY)
                .unwrap()
        };
        let chain = sign(&request.csr, &web);
        let cert_chain = match self.script {
            Script::Sign => chain,
            Script::SignAnotherKey => sign(&KeyAndCsr::generate(&web).unwrap().csr_pem, &web),
            Script::SignAnotherIdentity => sign(&request.csr, &identity("other")),
            Script::LeafOnly => chain[..1].to_vec(),
            Script::Nothing => Vec::new(),
            Script::Garbage => vec!["-----BEGIN CERTIFICATE-----\n!".to_owned(), "x".to_owned()],
            Script::Endless => vec![chain[0].clone(); 1000],
            Script::Refuse => return Err(Status::permission_denied("not your pod")),
            Script::Down => return Err(Status::unavailable("starting")),
        };
        let _ = self.seen.send(request);
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "shop", account).unwrap()
}

fn subject(account: &str) -> Subject {
    Subject {
        identity: identity(account),
        pods: vec!["a pod that this authority need not know".to_owned()],
    }
}

fn authority(script: Script) -> (Channel, mpsc::UnboundedReceiver<IstioCertificateRequest>) {
    let root = Root::generate("test", SystemTime::now(), 10 * DAY).unwrap();
    let (seen, requests) = mpsc::unbounded_channel();
    let (connections, incoming) = mpsc::channel::<Result<DuplexStream, std::io::Error>>(4);
    let service = IstioCertificateServiceServer::new(Authority { script, root, seen });
    let served = Server::builder().add_service(service);
    tokio::spawn(served.serve_with_incoming(ReceiverStream::new(incoming)));
    let connector = tower::service_fn(move |_| {
        let connections = connections.clone();
        async move {
            let (near, far) = tokio::io::duplex(64 * 1024);
            connections
                .send(Ok(far))
                .await
                .map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(near))
        }
    });
    (
        Endpoint::from_static("http://ca").connect_with_connector_lazy(connector),
        requests,
    )
}

#[tokio::test]
async fn asks_as_istio_s_contract_says() {
    for impersonate in [true, false] {
        let (channel, mut requests) = authority(Script::Sign);
        let issuer = CaIssuer::new(channel, DAY, impersonate);
        let Ok(Issued::Once(svid)) = issuer.issue(&subject("web")).await else {
            panic!("a certificate, and no more to come");
        };
        assert_eq!(svid.identity(), &identity("web"));
        let request = requests.recv().await.unwrap();
        assert_eq!(request.validity_duration, 86_400);
        assert!(
            request
                .csr
                .starts_with("-----BEGIN CERTIFICATE REQUEST-----")
        );
        let named = request
            .metadata
            .map(|metadata| metadata.fields[IMPERSONATED].clone());
        let expected = Kind::StringValue("spiffe://cluster.local/ns/shop/sa/web".to_owned());
        assert_eq!(
            named,
            impersonate.then_some(Value {
                kind: Some(expected)
            })
        );
    }
}

#[tokio::test]
async fn every_request_has_a_key_of_its_own() {
    let (channel, mut requests) = authority(Script::Sign);
    let issuer = CaIssuer::new(channel, DAY, true);
    for _ in 0..2 {
        issuer.issue(&subject("web")).await.unwrap();
    }
    assert_ne!(
        requests.recv().await.unwrap().csr,
        requests.recv().await.unwrap().csr
    );
}

#[tokio::test]
async fn unusable_answers_are_refused() {
    let cases = [
        (Script::SignAnotherKey, "unusable"),
        (
            Script::SignAnotherIdentity,
            "certificate of spiffe://cluster.local/ns/shop/sa/other",
        ),
        (Script::LeafOnly, "1 elements"),
        (Script::Nothing, "0 elements"),
        (Script::Endless, "1000 elements"),
        (Script::Garbage, "unusable"),
        (Script::Refuse, "refuses: PermissionDenied: not your pod"),
        (Script::Down, "cannot be asked: Unavailable: starting"),
    ];
    for (script, expected) in cases {
        let (channel, _requests) = authority(script);
        let error = CaIssuer::new(channel, DAY, true)
            .issue(&subject("web"))
            .await
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{script:?}: {error}");
    }
}

#[tokio::test]
async fn an_authority_that_cannot_be_reached_says_why() {
    let connector = tower::service_fn(|_| async {
        Err::<TokioIo<DuplexStream>, _>(std::io::Error::other("no route to host"))
    });
    let channel = Endpoint::from_static("http://ca").connect_with_connector_lazy(connector);
    let error = CaIssuer::new(channel, DAY, true)
        .issue(&subject("web"))
        .await
        .unwrap_err();
    assert!(matches!(error, IssueError::Unavailable(_)));
    assert!(error.to_string().contains("no route to host"), "{error}");
}
