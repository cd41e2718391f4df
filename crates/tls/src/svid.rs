//! One certificate of one identity, ready for use.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use ambit_model::identity::Identity;
use base64::Engine;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};

use crate::csr::PrivateKey;
use crate::error::{Rejected, TlsError};
use crate::leaf::{Described, Leaf};
use crate::provider::{VERSIONS, provider, provider_for};
use crate::revocation::Lineage;
use crate::terms::{KeyExchange, Terms};
use crate::trust::{TrustBundles, certificates_from_der};
use crate::verify::{Bundle, MAX_CHAIN, Side, Verifier, Wanted, believed, verify};

/// The one application protocol of the mesh (RFC 9113 3.1).
pub(crate) const ALPN_H2: &[u8] = b"h2";

/// An X.509-SVID: certificate chain, private key and the trust bundle that came with it.
///
/// Immutable and shared. A renewed certificate is a new `Svid` with a new [`Svid::generation`].
pub struct Svid {
    leaf: Leaf,
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    generation: u64,
    bundle: Arc<Bundle>,
    /// Trusts nobody until [`Svid::dialling`] says whom.
    client: ClientConfig,
    server: Arc<ServerConfig>,
    /// The answer of [`Svid::believed`], found once: its signatures do not change.
    believed: OnceLock<Option<Lineage>>,
}

impl Svid {
    /// Builds one from a certificate authority's answer in the layout of Istio's service: the leaf
    /// first, then intermediates, and the trust bundle last. Each element is PEM and may hold several
    /// certificates.
    ///
    /// # Errors
    /// `Material` if an element is not PEM, the bundle is missing, or the key is not the leaf's;
    /// `Peer` if the leaf breaks a rule for workload certificates.
    pub fn from_chain(key: &PrivateKey, chain: &[impl AsRef<str>]) -> Result<Arc<Self>, TlsError> {
        Self::from_chain_on(key, chain, &Terms::default())
    }

    /// As [`Svid::from_chain`]: its handshakes keep to `terms`.
    ///
    /// # Errors
    /// As [`Svid::from_chain`].
    pub fn from_chain_on(
        key: &PrivateKey,
        chain: &[impl AsRef<str>],
        terms: &Terms,
    ) -> Result<Arc<Self>, TlsError> {
        let Some((bundle, chain)) = chain.split_last() else {
            return Err(TlsError::Material("certificate chain is empty".into()));
        };
        let mut certificates = Vec::new();
        for element in chain {
            certificates.extend(certificates_from_pem(element.as_ref())?);
        }
        let roots = certificates_from_pem(bundle.as_ref())?;
        let bundle = Bundle::new(&roots)?;
        Self::new(key, certificates, roots, bundle, terms)
    }

    /// Builds one from what an agent of SPIFFE hands out: the leaf and its intermediates one after another in DER, and the
    /// roots of each trust domain whose workloads it may meet.
    ///
    /// # Errors
    /// As [`Svid::from_chain`]; `Material` also if the roots of its own trust domain are not among them.
    pub fn from_der(
        key: &PrivateKey,
        chain: &[u8],
        trust: &TrustBundles,
        terms: &Terms,
    ) -> Result<Arc<Self>, TlsError> {
        let chain = certificates_from_der(chain, MAX_CHAIN)?;
        let bundle = Bundle::of_each(trust)?;
        let roots = trust.iter().flat_map(|(_, roots)| roots.iter().cloned());
        let svid = Self::new(key, chain, roots.collect(), bundle, terms)?;
        match svid.identity().trust_domain() {
            own if trust.contains(own) => Ok(svid),
            own => Err(TlsError::Material(format!("no trust bundle of {own}"))),
        }
    }

    fn new(
        key: &PrivateKey,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
        bundle: Bundle,
        terms: &Terms,
    ) -> Result<Arc<Self>, TlsError> {
        let Some(first) = chain.first() else {
            return Err(TlsError::Material(
                "chain has a trust bundle but no certificate".into(),
            ));
        };
        let leaf = Leaf::parse(first)?;
        let bundle = Arc::new(bundle.without(terms.revocations.clone()));
        let resolver = resolver(chain.clone(), key)?;
        let welcome = bundle.welcome(leaf.identity.trust_domain());
        let anyone = Verifier::new(Arc::clone(&bundle), welcome);
        let nobody = Verifier::new(Arc::clone(&bundle), Wanted::OneOf(Vec::new()));
        let server = Arc::new(server_config(
            Arc::clone(&resolver),
            anyone,
            terms.key_exchange,
        )?);
        let client = client_config(resolver, nobody, terms.key_exchange)?;
        static GENERATION: AtomicU64 = AtomicU64::new(1);
        let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Self {
            leaf,
            chain,
            roots,
            generation,
            bundle,
            client,
            server,
            believed: OnceLock::new(),
        }))
    }

    /// Whose certificate it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.leaf.identity
    }

    /// Start of its life.
    #[must_use]
    pub fn not_before(&self) -> SystemTime {
        self.leaf.not_before
    }

    /// End of its life.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after
    }

    /// Whether a peer with the same trust bundle would accept it at `now`, from either end.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn check(&self, now: SystemTime) -> Result<(), Rejected> {
        let since = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let now = UnixTime::since_unix_epoch(since);
        let (leaf, intermediates) = self.chain.split_first().ok_or(Rejected::NoCertificate)?;
        let wanted = Wanted::OneOf(vec![self.leaf.identity.clone()]);
        [Side::Server, Side::Client]
            .into_iter()
            .try_for_each(|side| verify(&self.bundle, &wanted, side, leaf, intermediates, now))
    }

    /// Whether it is the same certificate with the same roots: nothing that peers or we could see would change from one to
    /// the other.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.chain == other.chain && self.roots == other.roots
    }

    /// By which path a peer with the same trust bundle would believe it at `now`, if its holder dialled that peer;
    /// `None` where no lists of revoked certificates are watched. Whether a list of this moment names it is left
    /// to the caller.
    ///
    /// # Errors
    /// The rule that it breaks: the peer would refuse it.
    pub fn believed(&self, now: SystemTime) -> Result<Option<&Lineage>, Rejected> {
        if now >= self.leaf.not_after {
            return Err(Rejected::Expired);
        }
        if let Some(found) = self.believed.get() {
            return Ok(found.as_ref());
        }
        let since = now
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let (leaf, intermediates) = self.chain.split_first().ok_or(Rejected::NoCertificate)?;
        let now = UnixTime::since_unix_epoch(since);
        let found = believed(&self.bundle, leaf, intermediates, now)?;
        Ok(self.believed.get_or_init(|| found).as_ref())
    }

    /// Serial number: lower-case hexadecimal.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.leaf.serial
    }

    /// Distinguishes this certificate from every other one this process has had.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Leaf and intermediates, as presented to peers.
    #[must_use]
    pub fn chain(&self) -> Vec<Described> {
        self.chain.iter().map(|der| Described::of(der)).collect()
    }

    /// The trust bundle.
    #[must_use]
    pub fn roots(&self) -> Vec<Described> {
        self.roots.iter().map(|der| Described::of(der)).collect()
    }

    /// Whom it trusts.
    pub(crate) fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Settings for one outbound handshake with one of `expected`.
    pub(crate) fn dialling(&self, expected: &[Identity]) -> Arc<ClientConfig> {
        let wanted = Wanted::OneOf(expected.to_vec());
        let mut config = self.client.clone(); // a dozen reference counts; no key is parsed again
        config
            .dangerous()
            .set_certificate_verifier(Verifier::new(Arc::clone(&self.bundle), wanted));
        Arc::new(config)
    }

    /// Settings for inbound handshakes with anybody of our trust domain, or of one that we may trust besides.
    pub(crate) fn accepting(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("identity", &self.leaf.identity.to_string())
            .field("serial", &self.leaf.serial)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

fn resolver(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKey,
) -> Result<Arc<SingleCertAndKey>, TlsError> {
    let certified = CertifiedKey::from_der(chain, key.der(), &provider())
        .map_err(|error| TlsError::Material(format!("certificate and key: {error}")))?;
    certified
        .keys_match()
        .map_err(|error| TlsError::Material(format!("certificate and key: {error}")))?;
    Ok(Arc::new(SingleCertAndKey::from(certified)))
}

fn server_config(
    resolver: Arc<SingleCertAndKey>,
    verifier: Arc<Verifier>,
    exchange: KeyExchange,
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider_for(exchange))
        .with_protocol_versions(VERSIONS)
        .map_err(|_| TlsError::Bug("provider lacks TLS 1.3"))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    harden_server(&mut config);
    Ok(config)
}

fn client_config(
    resolver: Arc<SingleCertAndKey>,
    verifier: Arc<Verifier>,
    exchange: KeyExchange,
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider_for(exchange))
        .with_protocol_versions(VERSIONS)
        .map_err(|_| TlsError::Bug("provider lacks TLS 1.3"))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(resolver);
    harden_client(&mut config);
    Ok(config)
}

/// No tickets, no early data: every connection is verified in full, and two records less are sent
/// for each handshake.
pub(crate) fn harden_server(config: &mut ServerConfig) {
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.enable_secret_extraction = true; // records are ours to seal: see `record.rs`
}

/// No resumption, no early data, no name in the clear.
pub(crate) fn harden_client(config: &mut ClientConfig) {
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
    config.enable_secret_extraction = true; // as above
    config.enable_sni = false;
}

/// Every certificate of a PEM text.
pub(crate) fn certificates_from_pem(text: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| TlsError::Material(format!("PEM: {error}")))
}

/// One certificate as PEM text (RFC 7468: 64 characters a line).
pub(crate) fn pem(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::with_capacity(text.len() + text.len() / 64 + 64);
    out.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at_checked(64).unwrap_or((rest, ""));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}
