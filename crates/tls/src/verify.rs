//! Is this chain an X.509-SVID that we trust, and whose?
//!
//! Rules in the order of their cost, cheapest first: size of the chain, the end-entity's own rules
//! (`leaf.rs`), trust domain and expected identity, and only then signatures up to a root of the
//! trust bundle (RFC 5280, by webpki, with its own bound on the number of signatures checked), and
//! revocation of what is on the way there.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ambit_model::identity::Identity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible,
    SignatureScheme,
};

use crate::error::{Rejected, TlsError};
use crate::leaf::Leaf;
use crate::peer::Peer;
use crate::provider::provider;
use crate::revocation::{Lineage, Revocations};
use crate::trust::TrustBundles;

/// Leaf, and intermediates: real deployments have one to three. A longer chain only buys the
/// sender our signature checks.
pub const MAX_CHAIN: usize = 8;

/// Bytes of the whole chain. An RSA-4096 certificate is about 2 KiB, a post-quantum one about 8.
pub const MAX_CHAIN_BYTES: usize = 32 * 1024;

/// Whom we trust to say who somebody is.
pub(crate) struct Bundle {
    anchors: Anchors,
    revocations: Revocations,
}

enum Anchors {
    /// The same roots whatever the trust domain, as one authority signs for all of them.
    Same(Vec<TrustAnchor<'static>>),
    /// Each trust domain's certificates by its own roots alone, and none of a domain that is not named.
    OfEach(BTreeMap<String, Vec<TrustAnchor<'static>>>),
}

impl Bundle {
    /// Takes the roots that can be read.
    ///
    /// # Errors
    /// `Material` if there is none, or one is not a certificate.
    pub(crate) fn new(roots: &[CertificateDer<'static>]) -> Result<Self, TlsError> {
        if roots.is_empty() {
            return Err(TlsError::Material("trust bundle is empty".into()));
        }
        Ok(Self {
            anchors: Anchors::Same(anchors(roots)?),
            revocations: Revocations::default(),
        })
    }

    /// Takes the roots of each trust domain.
    ///
    /// # Errors
    /// As [`Bundle::new`].
    pub(crate) fn of_each(bundles: &TrustBundles) -> Result<Self, TlsError> {
        let each = bundles
            .iter()
            .map(|(domain, roots)| Ok((domain.clone(), anchors(roots)?)));
        Ok(Self {
            anchors: Anchors::OfEach(each.collect::<Result<_, TlsError>>()?),
            revocations: Revocations::default(),
        })
    }

    /// Who is let in by a workload of `own`.
    pub(crate) fn welcome(&self, own: &str) -> Wanted {
        match &self.anchors {
            Anchors::Same(_) => Wanted::TrustDomain(own.to_owned()),
            Anchors::OfEach(each) => Wanted::OneOfDomains(each.keys().cloned().collect()),
        }
    }

    fn anchors(&self, domain: &str) -> &[TrustAnchor<'static>] {
        match &self.anchors {
            Anchors::Same(anchors) => anchors,
            Anchors::OfEach(each) => each.get(domain).map_or(&[], Vec::as_slice),
        }
    }

    #[cfg(test)]
    pub(crate) fn lists(&self) -> Option<Arc<crate::revocation::Lists>> {
        self.revocations.current()
    }

    /// The same, without what these lists take back.
    pub(crate) fn without(self, revocations: Revocations) -> Self {
        Self {
            revocations,
            ..self
        }
    }
}

fn anchors(roots: &[CertificateDer<'static>]) -> Result<Vec<TrustAnchor<'static>>, TlsError> {
    roots
        .iter()
        .map(|root| Ok(webpki::anchor_from_trusted_cert(root)?.to_owned()))
        .collect::<Result<Vec<_>, webpki::Error>>()
        .map_err(|error| TlsError::Material(format!("root certificate: {error}")))
}

/// Which end the certificate speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// It accepted our connection.
    Server,
    /// It opened a connection to us.
    Client,
}

/// Whom we are ready to talk to.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// Anybody of this trust domain.
    TrustDomain(String),
    /// Anybody of one of these trust domains.
    OneOfDomains(Vec<String>),
    /// One of these, and nobody if the list is empty.
    OneOf(Vec<Identity>),
}

impl Wanted {
    fn check(&self, found: &Identity) -> Result<(), Rejected> {
        match self {
            Self::TrustDomain(wanted) if found.trust_domain() == wanted => Ok(()),
            Self::TrustDomain(wanted) => Err(Rejected::TrustDomain {
                found: found.trust_domain().to_string(),
                wanted: wanted.clone(),
            }),
            Self::OneOfDomains(wanted) if wanted.iter().any(|own| own == found.trust_domain()) => {
                Ok(())
            }
            Self::OneOfDomains(wanted) => Err(Rejected::TrustDomain {
                found: found.trust_domain().to_string(),
                wanted: wanted.join(" or "),
            }),
            Self::OneOf(identities) if identities.contains(found) => Ok(()),
            Self::OneOf(_) => Err(Rejected::Identity {
                found: found.clone(),
            }),
        }
    }
}

/// Checks a chain against every rule.
pub(crate) fn verify(
    bundle: &Bundle,
    wanted: &Wanted,
    side: Side,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), Rejected> {
    check_size(leaf, intermediates)?;
    let facts = Leaf::parse(leaf)?;
    wanted.check(&facts.identity)?;
    let anchors = bundle.anchors(facts.identity.trust_domain());
    check_path(bundle, anchors, side, leaf, intermediates, now).map(|_lineage| ())
}

/// By which path the other end of a connection that the chain's holder dials would believe the chain;
/// `None` where no lists of revoked certificates are watched.
pub(crate) fn believed(
    bundle: &Bundle,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<Option<Lineage>, Rejected> {
    check_size(leaf, intermediates)?;
    let facts = Leaf::parse(leaf)?;
    let anchors = bundle.anchors(facts.identity.trust_domain());
    check_path(bundle, anchors, Side::Client, leaf, intermediates, now)
}

/// The one place where a [`Peer`] is made.
///
/// To be called with the end-entity certificate of a *finished* handshake that ran one of this
/// module's verifiers: only then is the chain checked and the key's possession proven.
pub(crate) fn proven(
    bundle: &Bundle,
    side: Side,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<Peer, Rejected> {
    let facts = Leaf::parse(leaf)?;
    // What the verifier found is not handed on by the handshake: where it is needed it is found once
    // more, for the price of the path's signatures, and asked about on the lists of this moment.
    let lineage = match bundle.revocations.are_watched() {
        true => {
            let anchors = bundle.anchors(facts.identity.trust_domain());
            check_path(bundle, anchors, side, leaf, intermediates, UnixTime::now())?
        }
        false => None,
    };
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, leaf);
    let mut fingerprint = [0; 32];
    fingerprint
        .iter_mut()
        .zip(digest.as_ref())
        .for_each(|(to, from)| *to = *from);
    Ok(Peer::proven(
        facts.identity,
        fingerprint,
        facts.serial,
        facts.not_after,
        lineage,
    ))
}

fn check_size(leaf: &[u8], intermediates: &[CertificateDer<'_>]) -> Result<(), Rejected> {
    let certificates = intermediates.len() + 1;
    if certificates > MAX_CHAIN {
        return Err(Rejected::ChainTooLong(certificates));
    }
    let bytes = leaf.len() + intermediates.iter().map(|der| der.len()).sum::<usize>();
    if bytes > MAX_CHAIN_BYTES {
        return Err(Rejected::ChainTooLarge(bytes));
    }
    Ok(())
}

fn check_path(
    bundle: &Bundle,
    anchors: &[TrustAnchor<'static>],
    side: Side,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<Option<Lineage>, Rejected> {
    let usage = match side {
        Side::Server => webpki::KeyUsage::server_auth(),
        Side::Client => webpki::KeyUsage::client_auth(),
    };
    let algorithms = provider().signature_verification_algorithms.all;
    let end_entity = webpki::EndEntityCert::try_from(leaf).map_err(refusal)?;
    let lists = bundle.revocations.current();
    let unrevoked = |path: &webpki::VerifiedPath<'_>| match &lists {
        Some(lists) if lists.revoke(&Lineage::of(path)) => Err(webpki::Error::CertRevoked),
        _ => Ok(()),
    };
    end_entity
        .verify_for_usage(
            algorithms,
            anchors,
            intermediates,
            now,
            usage,
            None, // ours: webpki reads a list's every byte for its signature, in each handshake
            Some(&unrevoked),
        )
        .map(|path| lists.is_some().then(|| Lineage::of(&path)))
        .map_err(refusal)
}

fn refusal(error: webpki::Error) -> Rejected {
    match error {
        webpki::Error::CertExpired { .. } => Rejected::Expired,
        webpki::Error::CertNotValidYet { .. } => Rejected::NotYetValid,
        webpki::Error::UnknownIssuer => Rejected::UnknownIssuer,
        webpki::Error::CertRevoked => Rejected::Revoked,
        webpki::Error::BadDer => Rejected::Malformed,
        other => Rejected::Path(other.to_string()),
    }
}

/// A bundle and whom we want, as rustls asks for it.
pub(crate) struct Verifier {
    bundle: Arc<Bundle>,
    wanted: Wanted,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    pub(crate) fn new(bundle: Arc<Bundle>, wanted: Wanted) -> Arc<Self> {
        Arc::new(Self {
            bundle,
            wanted,
            provider: provider(),
        })
    }

    fn run(
        &self,
        side: Side,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        verify(&self.bundle, &self.wanted, side, leaf, intermediates, now)
            .map_err(|rejected| rustls::Error::InvalidCertificate(into_alert(rejected)))
    }
}

/// The form in which a refusal travels through rustls. The peer sees the alert that belongs to it:
/// expired, revoked, unknown authority, or certificate unknown; never the rule or our expectation.
fn into_alert(rejected: Rejected) -> CertificateError {
    match rejected {
        Rejected::Expired => CertificateError::Expired,
        Rejected::NotYetValid => CertificateError::NotValidYet,
        Rejected::UnknownIssuer => CertificateError::UnknownIssuer,
        Rejected::Revoked => CertificateError::Revoked,
        Rejected::Malformed => CertificateError::BadEncoding,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
}

/// The way back of [`into_alert`].
pub(crate) fn from_alert(error: &CertificateError) -> Rejected {
    match error {
        CertificateError::Expired => Rejected::Expired,
        CertificateError::NotValidYet => Rejected::NotYetValid,
        CertificateError::UnknownIssuer => Rejected::UnknownIssuer,
        CertificateError::Revoked => Rejected::Revoked,
        CertificateError::BadEncoding => Rejected::Malformed,
        CertificateError::Other(OtherError(inner)) => inner
            .downcast_ref::<Rejected>()
            .cloned()
            .unwrap_or_else(|| Rejected::Path(inner.to_string())),
        other => Rejected::Path(other.to_string()),
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("wanted", &self.wanted)
            .finish_non_exhaustive()
    }
}

/// The part of both verifiers that is about signatures: TLS 1.3 only, by what our provider can check.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls13_signature(
                message,
                cert,
                dss,
                &self.provider.signature_verification_algorithms,
            )
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider
                .signature_verification_algorithms
                .supported_schemes()
        }
    };
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.run(Side::Server, end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[] // a workload has one certificate: a hint would only cost bytes
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.run(Side::Client, end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}
