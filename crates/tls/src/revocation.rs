//! Certificates that were taken back before their time: revocation lists (RFC 5280 section 5).
//!
//! # Theory of operation
//! [`Lists`] is what a file of lists says, read once: for each authority the serial numbers it took
//! back. A handshake that has found a path to a root asks for every certificate of it, and the
//! [`Lineage`] of that path stays with the [`Peer`], so that whoever keeps the connection can ask
//! again when there are new lists. [`Revocations`] is where both find the lists in force.
//!
//! # Invariants
//! - Asked about is every certificate of the path but the root, which only the trust bundle can take
//!   back.
//! - A list counts for the certificates of the authority it names, and only if that authority's key
//!   signed it: authorities that share a name (a root and its successor) do not answer for each other.
//! - Whom no list names is not revoked. A list past its next update counts on: what was taken back
//!   stays so, and a late list stops nobody else.
//! - A file is taken as a whole or not at all.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Name;

use crate::error::TlsError;
use crate::peer::Peer;
use crate::provider::provider;

/// Lists in one file. An authority has one, or a few in parts.
const MAX_LISTS: usize = 1024;

/// Octets of a serial number (RFC 5280 4.1.2.2).
const SERIAL: usize = 20;

/// Authorities of one name whose keys are remembered for a list. A root, its successor, and one for
/// each cluster of a mesh whose authorities were all given the same name.
const MAX_KEYS: usize = 64;

/// A serial number as a number: zeros in front do not count.
type Serial = [u8; SERIAL];

/// What a file of revocation lists says. Immutable.
#[derive(Default)]
pub struct Lists {
    /// By the name of the authority, in DER.
    by_issuer: HashMap<Box<[u8]>, Vec<List>>,
}

struct List {
    /// The whole of it, for its signature.
    der: CertificateRevocationListDer<'static>,
    issuer: String,
    next_update: SystemTime,
    /// Sorted.
    revoked: Vec<Serial>,
    /// Whether a key (by its digest) made the signature: a list may have megabytes, and whoever was
    /// taken back may come back often.
    verdicts: ArcSwap<Vec<([u8; 32], bool)>>,
}

/// One list, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The authority it names.
    pub issuer: String,
    /// When there should have been a newer one.
    pub next_update: SystemTime,
    /// How many certificates it takes back.
    pub certificates: usize,
    /// Whether an authority of that name signed it: `None` until one of its certificates showed up.
    pub proven: Option<bool>,
}

impl Lists {
    /// Reads lists: PEM with one or more of them, or one in DER.
    ///
    /// Required of each is what RFC 5280 requires of an authority that conforms: version 2, a next
    /// update, extensions. Lists of changes (delta), of other authorities' certificates (indirect) and
    /// of some reasons only are not understood.
    ///
    /// # Errors
    /// `Material` if there is none, or one cannot be read or is not understood.
    pub fn read(bytes: &[u8]) -> Result<Self, TlsError> {
        let ders = match bytes.first() {
            Some(0x30) => vec![CertificateRevocationListDer::from(bytes.to_vec())],
            _ => CertificateRevocationListDer::pem_slice_iter(bytes)
                .take(MAX_LISTS + 1)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| unusable(format_args!("PEM: {error}")))?,
        };
        match ders.len() {
            0 => return Err(unusable("there is none")),
            more if more > MAX_LISTS => return Err(unusable("there are too many")),
            _ => {}
        }
        let mut by_issuer: HashMap<_, Vec<List>> = HashMap::new();
        for der in ders {
            let (issuer, list) = List::read(der)?;
            by_issuer.entry(issuer).or_default().push(list);
        }
        Ok(Self { by_issuer })
    }

    /// Every list.
    #[must_use]
    pub fn summaries(&self) -> Vec<Summary> {
        let mut all: Vec<_> = self.lists().map(List::summary).collect();
        all.sort_by(|one, other| one.issuer.cmp(&other.issuer));
        all
    }

    fn lists(&self) -> impl Iterator<Item = &List> {
        self.by_issuer.values().flatten()
    }

    /// Whether a certificate of this path was taken back.
    pub(crate) fn revoke(&self, lineage: &Lineage) -> bool {
        let listed = |link: &Link| {
            let lists = self.by_issuer.get(&link.issuer).into_iter().flatten();
            lists
                .filter(|list| list.names(link))
                .any(|list| list.is_signed_by(&link.key))
        };
        lineage.0.iter().any(listed)
    }
}

impl fmt::Debug for Lists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.summaries()).finish()
    }
}

impl List {
    fn read(der: CertificateRevocationListDer<'static>) -> Result<(Box<[u8]>, Self), TlsError> {
        // The one judge of what is understood; the walk below relies on its verdict.
        let parsed = webpki::BorrowedCertRevocationList::from_der(&der)
            .map_err(|error| unusable(format_args!("{error:?}")))?;
        let mut revoked = Vec::new();
        for entry in &parsed {
            let entry = entry.map_err(|error| unusable(format_args!("entry: {error:?}")))?;
            let serial = serial(entry.serial_number);
            revoked.push(serial.ok_or_else(|| unusable("a serial number is too long"))?);
        }
        revoked.sort_unstable();
        revoked.shrink_to_fit();
        let parts = Parts::of(&der).ok_or_else(|| unusable("malformed"))?;
        let name: Box<[u8]> = parts.issuer.content.into();
        let issuer = X509Name::from_der(parts.issuer.whole).map(|(_, name)| name.to_string());
        let next_update = time(parts.next_update).ok_or_else(|| unusable("no next update"))?;
        let list = Self {
            issuer: issuer.unwrap_or_default(),
            next_update,
            revoked,
            verdicts: ArcSwap::default(),
            der,
        };
        Ok((name, list))
    }

    fn names(&self, link: &Link) -> bool {
        let serial = link.serial.as_ref();
        serial.is_some_and(|serial| self.revoked.binary_search(serial).is_ok())
    }

    fn is_signed_by(&self, key: &[u8]) -> bool {
        let mut digest = [0; 32];
        let made = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key);
        digest
            .iter_mut()
            .zip(made.as_ref())
            .for_each(|(to, from)| *to = *from);
        let known = self
            .verdicts
            .load()
            .iter()
            .find(|(of, _)| *of == digest)
            .copied();
        if let Some((_, verdict)) = known {
            return verdict;
        }
        let verdict = self.verify(key).is_some();
        self.verdicts.rcu(|known| {
            let mut known = Vec::clone(known);
            if known.len() < MAX_KEYS {
                known.push((digest, verdict));
            }
            known
        });
        verdict
    }

    /// Whether `key`, the content of a SubjectPublicKeyInfo, made the signature.
    fn verify(&self, key: &[u8]) -> Option<()> {
        let parts = Parts::of(&self.der)?;
        let (algorithm, key) = split_key(key)?;
        provider()
            .signature_verification_algorithms
            .all
            .iter()
            .filter(|known| known.signature_alg_id().as_ref() == parts.algorithm)
            .filter(|known| known.public_key_alg_id().as_ref() == algorithm)
            .find_map(|known| {
                known
                    .verify_signature(key, parts.signed, parts.signature)
                    .ok()
            })
    }

    fn summary(&self) -> Summary {
        let verdicts = self.verdicts.load();
        let asked = !verdicts.is_empty();
        Summary {
            issuer: self.issuer.clone(),
            next_update: self.next_update,
            certificates: self.revoked.len(),
            proven: asked.then(|| verdicts.iter().any(|(_, verdict)| *verdict)),
        }
    }
}

fn unusable(reason: impl fmt::Display) -> TlsError {
    TlsError::Material(format!("revocation list: {reason}"))
}

/// The parts of a list that are needed after it was judged, each where it lies in the whole.
struct Parts<'a> {
    /// What the signature is over.
    signed: &'a [u8],
    /// Content of the signature's AlgorithmIdentifier.
    algorithm: &'a [u8],
    signature: &'a [u8],
    issuer: Element<'a>,
    /// With tag and length.
    next_update: &'a [u8],
}

impl<'a> Parts<'a> {
    /// RFC 5280 5.1.
    fn of(der: &'a [u8]) -> Option<Self> {
        let list = Element::first(Element::first(der)?.content)?;
        let algorithm = Element::first(list.rest)?;
        let signature = Element::first(algorithm.rest)?;
        let version = Element::first(list.content)?;
        let issuer = Element::first(Element::first(version.rest)?.rest)?;
        let this_update = Element::first(issuer.rest)?;
        let next_update = Element::first(this_update.rest)?;
        Some(Self {
            signed: list.whole,
            algorithm: algorithm.content,
            signature: whole_octets(signature.content)?,
            issuer,
            next_update: next_update.whole,
        })
    }
}

/// The AlgorithmIdentifier's content and the key of a SubjectPublicKeyInfo's content.
fn split_key(info: &[u8]) -> Option<(&[u8], &[u8])> {
    let algorithm = Element::first(info)?;
    let key = Element::first(algorithm.rest)?;
    Some((algorithm.content, whole_octets(key.content)?))
}

/// A BIT STRING's octets: none of their bits is unused.
fn whole_octets(bits: &[u8]) -> Option<&[u8]> {
    bits.split_first()
        .filter(|(unused, _)| **unused == 0)
        .map(|(_, octets)| octets)
}

/// One element of DER.
#[derive(Clone, Copy)]
struct Element<'a> {
    whole: &'a [u8],
    content: &'a [u8],
    /// What comes after it.
    rest: &'a [u8],
}

impl<'a> Element<'a> {
    fn first(input: &'a [u8]) -> Option<Self> {
        let (_tag, after) = input.split_first()?;
        let (&first, after) = after.split_first()?;
        let (length, after) = match first {
            0..=0x7f => (usize::from(first), after),
            // Four octets of length are far more than a file that is read here has.
            0x81..=0x84 => {
                let (octets, after) = after.split_at_checked(usize::from(first & 0x7f))?;
                let shift = |length: usize, octet: &u8| length << 8 | usize::from(*octet);
                (octets.iter().fold(0, shift), after)
            }
            _ => return None,
        };
        let (content, rest) = after.split_at_checked(length)?;
        let whole = input.get(..input.len() - rest.len())?;
        Some(Self {
            whole,
            content,
            rest,
        })
    }
}

fn time(der: &[u8]) -> Option<SystemTime> {
    let (_, time) = ASN1Time::from_der(der).ok()?;
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The number that an INTEGER's content is, if it is one that a list can name.
fn serial(content: &[u8]) -> Option<Serial> {
    let zeros = content.iter().take_while(|octet| **octet == 0).count();
    let number = content.get(zeros..)?;
    let mut serial = [0; SERIAL];
    let place = serial.get_mut(SERIAL.checked_sub(number.len())?..)?;
    place.copy_from_slice(number);
    Some(serial)
}

/// Who vouched for a peer: its certificate and those above it, without the root.
#[derive(Clone, PartialEq, Eq)]
pub struct Lineage(Arc<[Link]>);

#[derive(Clone, PartialEq, Eq)]
struct Link {
    /// The name of the authority that signed this certificate, in DER.
    issuer: Box<[u8]>,
    /// The key it was signed with: the content of a SubjectPublicKeyInfo.
    key: Box<[u8]>,
    /// `None` if it is one that no list can name.
    serial: Option<Serial>,
}

impl Lineage {
    /// Of a path that was verified.
    pub(crate) fn of(path: &webpki::VerifiedPath<'_>) -> Self {
        let mut links = Vec::with_capacity(2);
        let mut child: &webpki::Cert<'_> = path.end_entity();
        for above in path.intermediate_certificates() {
            let info = above.subject_public_key_info();
            let key = Element::first(&info).map(|info| info.content);
            links.push(Link::new(child, key.unwrap_or_default()));
            child = above;
        }
        links.push(Link::new(child, &path.anchor().subject_public_key_info));
        Self(links.into())
    }
}

impl Link {
    fn new(child: &webpki::Cert<'_>, key: &[u8]) -> Self {
        Self {
            issuer: child.issuer().into(),
            key: key.into(),
            serial: serial(child.serial()),
        }
    }
}

impl fmt::Debug for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lineage({})", self.0.len())
    }
}

/// Where the lists in force are found. Clones find the same.
///
/// The default has none and never will: nothing is kept or asked then.
#[derive(Debug, Clone, Default)]
pub struct Revocations(Option<Arc<ArcSwap<Lists>>>);

impl Revocations {
    /// A place for lists, empty as yet.
    #[must_use]
    pub fn watched() -> Self {
        Self(Some(Arc::default()))
    }

    /// Puts lists in force for every handshake from now on. Connections that are open are their
    /// owner's to ask about: [`Revocations::revoke`].
    pub fn put(&self, lists: Lists) {
        if let Some(current) = &self.0 {
            current.store(Arc::new(lists));
        }
    }

    /// Whether there is a place for lists.
    #[must_use]
    pub fn are_watched(&self) -> bool {
        self.0.is_some()
    }

    /// The lists in force; `None` if there is no place for any.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Lists>> {
        self.0.as_ref().map(|current| current.load_full())
    }

    /// Whether this peer's certificate, or one above it, has been taken back by now.
    #[must_use]
    pub fn revoke(&self, peer: &Peer) -> bool {
        peer.lineage()
            .is_some_and(|lineage| self.revoke_lineage(lineage))
    }

    /// As [`Revocations::revoke`], for who keeps no more of a peer than this.
    #[must_use]
    pub fn revoke_lineage(&self, lineage: &Lineage) -> bool {
        self.0
            .as_ref()
            .is_some_and(|current| current.load().revoke(lineage))
    }
}
