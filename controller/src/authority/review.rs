//! Tokens: JWTs of the shape Kubernetes gives to pods.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use ambit_objects::{Name, Objects};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use crate::cluster::{is_alive, service_account};

/// Audience of the tokens that proxies show.
pub const AUDIENCE: &str = "istio-ca";

/// Clocks of token makers and ours may differ by this much.
const LEEWAY: Duration = Duration::from_secs(60);

/// Longest token read: Kubernetes' are 1 to 2 KiB.
const MAX_TOKEN: usize = 16 << 10;

/// Who calls, as its token proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// The pod the token is bound to.
    pub pod: Option<Bound>,
    /// The node the token names.
    pub node: Option<String>,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service_account)?;
        if let Some(pod) = &self.pod {
            write!(f, " ({})", pod.name)?;
        }
        Ok(())
    }
}

/// An object a token is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Its name.
    pub name: String,
    /// Its uid.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// Claims of a token, as Kubernetes has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    /// Whom it is for.
    #[serde(with = "audience")]
    pub aud: Vec<String>,
    /// Seconds since 1970 when it ends.
    pub exp: u64,
    /// When it was made.
    #[serde(default)]
    pub iat: u64,
    /// When it begins.
    #[serde(default)]
    pub nbf: u64,
    /// Who made it.
    #[serde(default)]
    pub iss: String,
    /// `system:serviceaccount:<namespace>:<name>`.
    pub sub: String,
    /// What it is bound to.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: KubernetesClaims,
    /// Others, which have no effect.
    #[serde(flatten)]
    pub others: BTreeMap<String, serde_json::Value>,
}

/// The claim `kubernetes.io`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesClaims {
    /// The namespace.
    pub namespace: String,
    /// The service account.
    pub serviceaccount: Bound,
    /// The pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Bound>,
    /// The node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Bound>,
}

/// Why a token does not count. Says nothing of the token itself, so it can be logged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// There is none.
    #[error("no token")]
    Missing,
    /// It is no JWT, or not signed by a key that is trusted here.
    #[error("not a token signed by a trusted key")]
    Signature,
    /// It is for somebody else.
    #[error("audience is not {AUDIENCE}")]
    Audience,
    /// It has ended, or not begun.
    #[error("expired or not yet valid")]
    Time,
    /// Its claims contradict each other.
    #[error("subject is not the service account it names")]
    Subject,
    /// The pod it is bound to is not there any more, or is not what it says.
    #[error("bound to pod {0}, which {1}")]
    Pod(String, &'static str),
}

/// Keys whose tokens are trusted.
pub struct Reviewer(Vec<(Algorithm, DecodingKey)>);

impl fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reviewer").field(&self.0.len()).finish()
    }
}

impl Reviewer {
    /// Trusts the public keys in these PEM texts: EC P-256 (ES256) or RSA (RS256).
    ///
    /// # Errors
    /// When one holds no such key.
    pub fn new<'a>(keys: impl IntoIterator<Item = &'a str>) -> Result<Self, &'static str> {
        let read = |pem: &str| {
            let ec = DecodingKey::from_ec_pem(pem.as_bytes()).map(|key| (Algorithm::ES256, key));
            ec.or_else(|_| {
                DecodingKey::from_rsa_pem(pem.as_bytes()).map(|key| (Algorithm::RS256, key))
            })
            .map_err(|_| "not the PEM of an EC P-256 or RSA public key")
        };
        keys.into_iter()
            .map(read)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Who shows this token at `now`, with `objects` as the pods there are.
    ///
    /// # Errors
    /// See [`Denied`].
    pub fn review(
        &self,
        token: &str,
        objects: &Objects,
        now: SystemTime,
    ) -> Result<Caller, Denied> {
        let claims = self.verified(token.trim())?;
        let caller = caller(claims, now)?;
        check_pod(&caller, objects)?;
        Ok(caller)
    }

    fn verified(&self, token: &str) -> Result<Claims, Denied> {
        if token.is_empty() {
            return Err(Denied::Missing);
        }
        if token.len() > MAX_TOKEN {
            return Err(Denied::Signature);
        }
        let verified = self.0.iter().find_map(|(algorithm, key)| {
            let mut only_signature = Validation::new(*algorithm);
            // Times and audience are checked below, against the caller's clock.
            only_signature.validate_exp = false;
            only_signature.validate_nbf = false;
            only_signature.validate_aud = false;
            only_signature.required_spec_claims.clear();
            jsonwebtoken::decode::<Claims>(token, key, &only_signature).ok()
        });
        verified.map(|token| token.claims).ok_or(Denied::Signature)
    }
}

fn caller(claims: Claims, now: SystemTime) -> Result<Caller, Denied> {
    if !claims.aud.iter().any(|audience| audience == AUDIENCE) {
        return Err(Denied::Audience);
    }
    let at = |seconds: u64| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    let begins = at(claims.nbf).ok_or(Denied::Time)?;
    let ends = at(claims.exp)
        .and_then(|end| end.checked_add(LEEWAY))
        .ok_or(Denied::Time)?;
    if now >= ends || now + LEEWAY < begins {
        return Err(Denied::Time);
    }
    let KubernetesClaims {
        namespace,
        serviceaccount,
        pod,
        node,
    } = claims.kubernetes;
    let service_account = serviceaccount.name;
    let subject = format!("system:serviceaccount:{namespace}:{service_account}");
    if claims.sub != subject || namespace.is_empty() || service_account.is_empty() {
        return Err(Denied::Subject);
    }
    let node = node.map(|node| node.name);
    Ok(Caller {
        namespace,
        service_account,
        pod,
        node,
    })
}

/// A bound token is worth as much as its pod: there, alive, the same one, on the node it names.
fn check_pod(caller: &Caller, objects: &Objects) -> Result<(), Denied> {
    let Some(bound) = &caller.pod else {
        return Ok(());
    };
    let name = Name::new(&caller.namespace, &bound.name);
    let denied = |why| Err(Denied::Pod(name.to_string(), why));
    let Some(pod) = objects.pods.get(&name) else {
        return denied("does not exist");
    };
    if !is_alive(pod) {
        return denied("has ended");
    }
    // A manifest need not give a uid; then the name is all there is to compare.
    if pod
        .metadata
        .uid
        .as_ref()
        .is_some_and(|uid| *uid != bound.uid)
    {
        return denied("has another uid");
    }
    if service_account(pod) != caller.service_account {
        return denied("has another service account");
    }
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
    if caller.node.is_some() && caller.node.as_ref() != node {
        return denied("is not on the node it names");
    }
    Ok(())
}

/// What a new token says.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The namespace.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
    /// The pod, if it is to be bound to one.
    pub pod: Option<Bound>,
    /// The node.
    pub node: Option<String>,
    /// Whom it is for.
    pub audience: String,
    /// Who makes it.
    pub issuer: String,
    /// How long it is good for.
    pub ttl: Duration,
}

/// Makes a token, signed with ES256 by the key in `key_pem` (PKCS#8).
///
/// # Errors
/// When the key cannot be read or the time is out of range.
pub fn make(key_pem: &str, wanted: Wanted, now: SystemTime) -> Result<String, &'static str> {
    let seconds = |at: SystemTime| -> Result<u64, &'static str> {
        let since = at
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_err(|_| "time is out of range")?;
        Ok(since.as_secs())
    };
    let ends = now.checked_add(wanted.ttl).ok_or("time is out of range")?;
    let claims = Claims {
        aud: vec![wanted.audience],
        exp: seconds(ends)?,
        iat: seconds(now)?,
        nbf: seconds(now)?,
        iss: wanted.issuer,
        sub: format!(
            "system:serviceaccount:{}:{}",
            wanted.namespace, wanted.service_account
        ),
        kubernetes: KubernetesClaims {
            namespace: wanted.namespace,
            serviceaccount: Bound {
                name: wanted.service_account,
                uid: String::new(),
            },
            pod: wanted.pod,
            node: wanted.node.map(|name| Bound {
                name,
                uid: String::new(),
            }),
        },
        others: BTreeMap::new(),
    };
    let key = EncodingKey::from_ec_pem(key_pem.as_bytes()).map_err(|_| "key cannot be read")?;
    jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &key)
        .map_err(|_| "token cannot be signed")
}

/// One audience or a list of them: both are allowed (RFC 7519 4.1.3).
mod audience {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        Many(Vec<String>),
    }

    pub(super) fn serialize<S: Serializer>(list: &[String], to: S) -> Result<S::Ok, S::Error> {
        list.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
        Ok(match Either::deserialize(from)? {
            Either::One(one) => vec![one],
            Either::Many(many) => many,
        })
    }
}

#[cfg(test)]
mod tests;
