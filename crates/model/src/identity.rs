//! Who a workload is: its SPIFFE identity.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::text::Text;

/// Scheme of every identity.
const SCHEME: &str = "spiffe://";

/// Longest identity: the limit of the SPIFFE-ID specification, section 2.3.
pub const IDENTITY_MAX: usize = 2048;

/// Longest trust domain: the limit of the SPIFFE-ID specification, section 2.1.
pub const TRUST_DOMAIN_MAX: usize = 255;

/// A SPIFFE identity of the form `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// Kept as one shared string with the places of its parts, so that neither comparing nor matching it against a policy allocates.
/// Two identities are equal exactly when their bytes are.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    uri: Text,
    trust_domain_end: u16,
    namespace_end: u16,
}

/// Why a string is no identity of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIdentity {
    /// It does not begin with `spiffe://`.
    #[error("identity does not begin with spiffe://")]
    Scheme,
    /// The trust domain is empty, too long, or has characters other than `a-z 0-9 . - _`.
    #[error("identity has no valid trust domain")]
    TrustDomain,
    /// The path is not `/ns/<namespace>/sa/<service account>` with non-empty segments of letters, digits, `.`, `-` and `_`.
    #[error("identity path is not /ns/<namespace>/sa/<service account>")]
    Path,
    /// It is longer than [`IDENTITY_MAX`].
    #[error("identity is longer than {IDENTITY_MAX} bytes")]
    TooLong,
}

impl Identity {
    /// The identity of a service account.
    ///
    /// # Errors
    ///
    /// When a part is empty, too long or has a character that SPIFFE does not permit.
    pub fn new(
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, InvalidIdentity> {
        check_trust_domain(trust_domain)?;
        check_segment(namespace)?;
        check_segment(service_account)?;
        let trust_domain_end = SCHEME.len() + trust_domain.len();
        let namespace_end = trust_domain_end + "/ns/".len() + namespace.len();
        let uri = format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}");
        Self::assemble(uri.into(), trust_domain_end, namespace_end)
    }

    /// The whole URI.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The URI without its scheme, which is what policies compare with.
    #[must_use]
    pub fn principal(&self) -> &str {
        self.part(SCHEME.len(), self.uri.len())
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        self.part(SCHEME.len(), self.trust_domain_end.into())
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        let end = usize::from(self.trust_domain_end);
        self.part(end + "/ns/".len(), self.namespace_end.into())
    }

    /// The service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        let end = usize::from(self.namespace_end);
        self.part(end + "/sa/".len(), self.uri.len())
    }

    /// The text that it is kept as.
    pub(crate) fn text_mut(&mut self) -> &mut Text {
        &mut self.uri
    }

    fn assemble(
        uri: Text,
        trust_domain_end: usize,
        namespace_end: usize,
    ) -> Result<Self, InvalidIdentity> {
        if uri.len() > IDENTITY_MAX {
            return Err(InvalidIdentity::TooLong);
        }
        let place = |end: usize| u16::try_from(end).map_err(|_| InvalidIdentity::TooLong);
        Ok(Self {
            trust_domain_end: place(trust_domain_end)?,
            namespace_end: place(namespace_end)?,
            uri,
        })
    }

    fn part(&self, from: usize, to: usize) -> &str {
        self.uri.get(from..to).unwrap_or_default()
    }
}

fn check_trust_domain(trust_domain: &str) -> Result<(), InvalidIdentity> {
    let permitted = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    let valid = !trust_domain.is_empty()
        && trust_domain.len() <= TRUST_DOMAIN_MAX
        && trust_domain.bytes().all(permitted);
    if valid {
        Ok(())
    } else {
        Err(InvalidIdentity::TrustDomain)
    }
}

fn check_segment(segment: &str) -> Result<(), InvalidIdentity> {
    let permitted = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let valid =
        !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(permitted);
    if valid {
        Ok(())
    } else {
        Err(InvalidIdentity::Path)
    }
}

impl FromStr for Identity {
    type Err = InvalidIdentity;

    fn from_str(uri: &str) -> Result<Self, InvalidIdentity> {
        if uri.len() > IDENTITY_MAX {
            return Err(InvalidIdentity::TooLong);
        }
        let rest = uri.strip_prefix(SCHEME).ok_or(InvalidIdentity::Scheme)?;
        let (trust_domain, path) = rest.split_once('/').ok_or(InvalidIdentity::Path)?;
        let path = path.strip_prefix("ns/").ok_or(InvalidIdentity::Path)?;
        let (namespace, path) = path.split_once('/').ok_or(InvalidIdentity::Path)?;
        let account = path.strip_prefix("sa/").ok_or(InvalidIdentity::Path)?;
        Self::new(trust_domain, namespace, account)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Identity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::{Identity, InvalidIdentity};

    #[test]
    fn reads_and_writes_the_same_text() {
        let text = "spiffe://cluster.local/ns/shop/sa/web";
        let identity: Identity = text.parse().unwrap();
        assert_eq!(identity.to_string(), text);
        assert_eq!(identity.principal(), "cluster.local/ns/shop/sa/web");
        assert_eq!(identity.trust_domain(), "cluster.local");
        assert_eq!(identity.namespace(), "shop");
        assert_eq!(identity.service_account(), "web");
        assert_eq!(
            identity,
            Identity::new("cluster.local", "shop", "web").unwrap()
        );
    }

    #[test]
    fn refuses_what_is_not_exactly_the_form() {
        let path = "spiffe://td/ns/".to_owned() + &"x".repeat(3000) + "/sa/web";
        let cases = [
            ("", InvalidIdentity::Scheme),
            ("https://td/ns/a/sa/b", InvalidIdentity::Scheme),
            ("SPIFFE://td/ns/a/sa/b", InvalidIdentity::Scheme),
            ("spiffe://", InvalidIdentity::Path),
            ("spiffe:///ns/a/sa/b", InvalidIdentity::TrustDomain),
            ("spiffe://TD/ns/a/sa/b", InvalidIdentity::TrustDomain),
            ("spiffe://td:1/ns/a/sa/b", InvalidIdentity::TrustDomain),
            ("spiffe://user@td/ns/a/sa/b", InvalidIdentity::TrustDomain),
            ("spiffe://td/ns/a/sa", InvalidIdentity::Path),
            ("spiffe://td/ns/a/sa/", InvalidIdentity::Path),
            ("spiffe://td/ns/a/sa/b/", InvalidIdentity::Path),
            ("spiffe://td/ns/a/sa/b/c", InvalidIdentity::Path),
            ("spiffe://td/ns//sa/b", InvalidIdentity::Path),
            ("spiffe://td/ns/./sa/b", InvalidIdentity::Path),
            ("spiffe://td/ns/../sa/b", InvalidIdentity::Path),
            ("spiffe://td/ns/a%2f/sa/b", InvalidIdentity::Path),
            ("spiffe://td/ns/a/sa/b?x", InvalidIdentity::Path),
            ("spiffe://td/sa/a/ns/b", InvalidIdentity::Path),
            (path.as_str(), InvalidIdentity::TooLong),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Identity>(), Err(error), "{text}");
        }
    }
}
