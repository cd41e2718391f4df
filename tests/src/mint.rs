//! Certificates for peers that the mesh did not start, and TLS clients that show what they are shown.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ambit_model::identity::Identity;
use ambit_net::dial::Dial;
use ambit_tls::Svid;
use ambit_tls::authority::{Request, Root};
use ambit_tls::csr::PrivateKey;
use anyhow::{Context, Result};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use crate::pod::{CONNECT, Pod};

/// Signs certificates as an authority would.
#[derive(Debug)]
pub struct Mint(Root);

impl Mint {
    /// The authority of a world: its controller's.
    ///
    /// # Errors
    ///
    /// The controller has made no root yet.
    pub fn of(state: &Path) -> Result<Self> {
        let certificate = fs::read_to_string(state.join("root-cert.pem"))?;
        let key = fs::read_to_string(state.join("root-key.pem"))?;
        Ok(Self(Root::from_pem(&certificate, &key)?))
    }

    /// An authority that nobody trusts.
    ///
    /// # Errors
    ///
    /// No randomness.
    pub fn stranger() -> Result<Self> {
        let year = Duration::from_secs(365 * 86_400);
        Ok(Self(Root::generate("strangers", SystemTime::now(), year)?))
    }

    /// A certificate for an identity, with its key.
    ///
    /// # Errors
    ///
    /// The identity does not parse.
    pub fn issue(&self, identity: &str) -> Result<Credentials> {
        let key = KeyPair::generate()?;
        let mut wanted = CertificateParams::default();
        wanted.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
        let request = Request::from_pem(&wanted.serialize_request(&key)?.pem()?)?;
        let identity: Identity = identity
            .parse()
            .map_err(|_| anyhow::anyhow!("{identity}"))?;
        let hour = Duration::from_secs(3600);
        let chain = self.0.issue(&request, &identity, SystemTime::now(), hour)?;
        Ok(Credentials {
            chain,
            key: key.serialize_pem(),
        })
    }
}

impl Mint {
    /// A revocation list in PEM that takes back the certificates of these serial numbers
    /// (decimal, as a proxy's dump shows them), and says so for decades.
    ///
    /// # Errors
    ///
    /// A number cannot be read.
    pub fn take_back(&self, serials: &[String]) -> Result<String> {
        let key = KeyPair::from_pem(&self.0.key_pem())?;
        let issuer = Issuer::from_ca_cert_pem(&self.0.certificate_pem(), key)?;
        let entry = |serial: &String| {
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&octets(serial)?),
                revocation_time: date_time_ymd(2026, 1, 1),
                reason_code: None,
                invalidity_date: None,
            })
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(2096, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(entry).collect::<Result<_>>()?,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&issuer)?.pem()?)
    }
}

/// The octets of a decimal number of any length, the most significant first.
fn octets(decimal: &str) -> Result<Vec<u8>> {
    let mut octets = Vec::new();
    for digit in decimal.chars() {
        let mut carry = digit.to_digit(10).context("no decimal number")?;
        for octet in octets.iter_mut().rev() {
            let [.., high, low] = (u32::from(*octet) * 10 + carry).to_be_bytes();
            (*octet, carry) = (low, high.into());
        }
        let [.., low] = carry.to_be_bytes();
        if low != 0 {
            octets.insert(0, low);
        }
    }
    Ok(octets)
}

/// A certificate chain and its key.
#[derive(Debug)]
pub struct Credentials {
    /// Leaf first, root last, in PEM.
    pub chain: Vec<String>,
    /// The key in PEM.
    pub key: String,
}

impl Credentials {
    /// What a mesh peer uses.
    ///
    /// # Errors
    ///
    /// The chain is no SVID.
    pub fn svid(&self) -> Result<Arc<Svid>> {
        Ok(Svid::from_chain(
            &PrivateKey::from_pem(&self.key)?,
            &self.chain,
        )?)
    }
}

/// What a TLS server showed to a client without a certificate.
#[derive(Debug)]
pub struct Shown {
    /// The server's certificates, leaf first, as DER.
    pub certificates: Vec<Vec<u8>>,
    /// What came of the first request: `Err` if the server then refused the client.
    pub answer: io::Result<usize>,
}

impl Shown {
    /// Whether the leaf holds this text: an identity stands in a certificate as it is written.
    #[must_use]
    pub fn leaf_holds(&self, text: &str) -> bool {
        memchr::memmem::find(&self.certificates[0], text.as_bytes()).is_some()
    }
}

impl Pod {
    /// Opens TLS to an address, with these credentials or none and without checking the server's,
    /// then says hello in HTTP/2.
    ///
    /// # Errors
    ///
    /// The server closes during its own half of the handshake.
    pub async fn bare_tls(&self, to: SocketAddr, with: Option<&Credentials>) -> io::Result<Shown> {
        let dial = Dial {
            netns: Some(self.netns()),
            ..Dial::new(to, CONNECT)
        };
        let stream = dial.connect().await?;
        let connector = TlsConnector::from(Arc::new(unchecking(with)?));
        let mut tls = connector
            .connect(ServerName::IpAddress(to.ip().into()), stream)
            .await?;
        let (_, session) = tls.get_ref();
        let certificates = session.peer_certificates().unwrap_or_default();
        let certificates = certificates.iter().map(|der| der.to_vec()).collect();
        let answer = async {
            tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
                .await?;
            let mut bytes = [0; 64];
            match tokio::time::timeout(CONNECT, tls.read(&mut bytes)).await? {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                other => other,
            }
        };
        Ok(Shown {
            answer: answer.await,
            certificates,
        })
    }
}

/// TLS of a client that takes any server for right, as whom these credentials say or as nobody.
pub(crate) fn unchecking(with: Option<&Credentials>) -> io::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything(provider)));
    let mut config = match with {
        None => config.with_no_client_auth(),
        Some(credentials) => {
            let chain = credentials.chain.iter().map(|pem| {
                CertificateDer::from_pem_slice(pem.as_bytes()).map_err(io::Error::other)
            });
            let key = PrivateKeyDer::from_pem_slice(credentials.key.as_bytes());
            config
                .with_client_auth_cert(
                    chain.collect::<io::Result<_>>()?,
                    key.map_err(io::Error::other)?,
                )
                .map_err(io::Error::other)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Takes any certificate: to look at it.
#[derive(Debug)]
struct Anything(Arc<CryptoProvider>);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
